"""MNIST-1D (Greydanus & Kobak 2024): 40-point signals of ten classes, generated.

The data come from the generator of the ``mnist1d`` package with its default arguments,
seed and split: 4000 training and 1000 test samples. Its published test accuracies are
32 % for a linear model, 68 % for an MLP, 94 % for a CNN and 91 % for a GRU.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from pyguide.data.splits import Splits, TensorSplit
from pyguide.errors import UserError
from pyguide.torch_files import DamagedFile, load_tensors, save_tensors

__all__ = ["VALIDATION_SIZE", "generate", "mnist1d"]

VALIDATION_SIZE = 500
_KEYS = {"x_train", "y_train", "x_test", "y_test"}


def mnist1d(cache: Path, device: str = "cpu") -> Splits:
    """3500 training, 500 validation and 1000 test samples: (n, 40) float32, (n,) int64.

    The validation split is the last 500 training samples (the generator has shuffled
    them), whatever the seed of a run: runs differ in initialisation and batch order only.

    Parameters
    ----------
    cache : Path
        Folder of ``mnist1d.pt``, which is made where it is missing or damaged.
    device : str
        Where the tensors go.
    """
    path = cache / "mnist1d.pt"
    try:
        raw = load_tensors(path)
        if set(raw) != _KEYS:
            raise DamagedFile(f"{path}: not MNIST-1D")
    except (FileNotFoundError, DamagedFile):
        raw = generate()
        save_tensors(path, raw)
    raw = {name: value.to(device) for name, value in raw.items()}
    x, y = raw["x_train"], raw["y_train"]
    return Splits(
        train=TensorSplit(x[:-VALIDATION_SIZE], y[:-VALIDATION_SIZE]),
        val=TensorSplit(x[-VALIDATION_SIZE:], y[-VALIDATION_SIZE:]),
        test=TensorSplit(raw["x_test"], raw["y_test"]),
        classes=10,
    )


def generate() -> dict[str, Tensor]:
    """The package's training and test sets as tensors.

    Raises
    ------
    UserError
        If the ``mnist1d`` package is not installed.
    """
    try:
        import numpy as np
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
    return {
        "x_train": torch.from_numpy(raw["x"].astype(np.float32)),
        "y_train": torch.from_numpy(raw["y"].astype(np.int64)),
        "x_test": torch.from_numpy(raw["x_test"].astype(np.float32)),
        "y_test": torch.from_numpy(raw["y_test"].astype(np.int64)),
    }
