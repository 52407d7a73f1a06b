"""MNIST-1D (Greydanus & Kobak 2024): 40-point signals of ten classes, generated, never downloaded.

The data come from the generator of the ``mnist1d`` package with its default arguments,
seed and split: 4000 training and 1000 test samples. Its published test accuracies are
32 % for a linear model, 68 % for an MLP, 94 % for a CNN and 91 % for a GRU.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pyguide.experiments.errors import UserError
from pyguide.experiments.files import atomic_write

__all__ = ["VALIDATION_SIZE", "Data", "generate"]

VALIDATION_SIZE = 500


@dataclass(frozen=True)
class Data:
    """MNIST-1D as arrays; inputs are (n, 40) float32, labels (n,) int64.

    ``x_test`` and ``y_test`` are None where the test set must not be scored.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz`` file."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> Data:
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            return cls(**arrays)


def generate(*, with_test: bool = True) -> Data:
    """Generate MNIST-1D and carve a validation split from its training data.

    The validation split is the last 500 training samples (the generator has shuffled
    them), whatever the seed of a run: runs differ in initialisation and batch order only.

    Parameters
    ----------
    with_test : bool
        False leaves the test set out, for a search that must not see it.

    Returns
    -------
    Data
        3500 training, 500 validation and 1000 test samples.

    Raises
    ------
    UserError
        If the ``mnist1d`` package is not installed.

    Examples
    --------
    >>> from pyguide.experiments.mnist1d import generate
    >>> generate().x_train.shape
    (3500, 40)
    """
    try:
        from mnist1d.data import make_dataset
    except ImportError as error:
        raise UserError(
            f"the data need the mnist1d package ({error}): pip install 'pyguide[experiments]'"
        ) from error
    # The generator seeds the global generators of `random` and NumPy: put them back.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        raw = make_dataset()
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    x, y = raw["x"].astype(np.float32), raw["y"].astype(np.int64)
    return Data(
        x_train=x[:-VALIDATION_SIZE],
        y_train=y[:-VALIDATION_SIZE],
        x_val=x[-VALIDATION_SIZE:],
        y_val=y[-VALIDATION_SIZE:],
        x_test=raw["x_test"].astype(np.float32) if with_test else None,
        y_test=raw["y_test"].astype(np.int64) if with_test else None,
    )
