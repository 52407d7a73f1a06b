"""ImageNet's layout as training, validation and test data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyguide.data.image_transforms import EvalTransform, TrainTransform
from pyguide.data.images import EpochSampler, ImageFolder
from pyguide.data.splits import WHOLE, Batch, Share, Splits

__all__ = ["HELD_OUT", "ImageSplit", "image_splits"]

#: One image in so many of each training class is for validation, at least one.
HELD_OUT = 20

# Images in one forward pass of an evaluation.
_EVALUATION_BATCH = 256


def image_splits(root: Path, size: int, device: str, loaders: int) -> Splits:
    """Splits of an image folder ``train/<class>/*``, ``val/<class>/*``.

    ``val`` is the test set, as it is in published results. The validation split is one in
    20 images of each class of ``train``, the same in every run; nothing is trained on it.

    Parameters
    ----------
    root : Path
        The folder.
    size : int
        Height and width of the images; their short side is resized to 8/7 of it for
        evaluation (224 and 256).
    device : str
        Where the batches go.
    loaders : int
        Processes that read images; 0 reads in this one. The batches do not depend on it.

    Raises
    ------
    UserError
        If a folder is missing, or a class of `train` has fewer than two images.
    """
    evaluation = EvalTransform(size=size, resize=size * 256 // 224)
    augmented = ImageFolder(root / "train", TrainTransform(size=size))
    plain = ImageFolder(root / "train", evaluation)
    test = ImageFolder(root / "val", evaluation, classes=plain.classes)
    held_out = _held_out(plain.labels)
    everything = np.arange(len(test))
    return Splits(
        train=ImageSplit(augmented, np.flatnonzero(~held_out), device, loaders),
        val=ImageSplit(plain, np.flatnonzero(held_out), device, loaders),
        test=ImageSplit(test, everything, device, loaders),
        classes=len(plain.classes),
    )


def _held_out(labels: np.ndarray) -> np.ndarray:
    """A mask of the images for validation; a fixed draw, since names may be in an order."""
    rng = np.random.default_rng(0)
    mask = np.zeros(len(labels), dtype=bool)
    for label in range(labels.max() + 1):
        indices = np.flatnonzero(labels == label)
        mask[rng.permutation(indices)[: max(1, len(indices) // HELD_OUT)]] = True
    return mask


@dataclass(frozen=True)
class ImageSplit(Dataset[Any]):
    """Some images of a folder, by (epoch, position).

    Attributes
    ----------
    images : ImageFolder
    indices : ndarray
        Indices into it.
    device : str
        Where the batches go.
    loaders : int
        Processes that read.
    """

    images: ImageFolder
    indices: np.ndarray
    device: str
    loaders: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, position = key
        return self.images[epoch, int(self.indices[position])]

    def shuffled(
        self, batch_size: int, generator: torch.Generator, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Whole batches in a new order, with new crops and flips."""
        sampler = EpochSampler(len(self), seed=0)
        sampler.set_epoch(int(torch.randint(2**62, (), generator=generator)))
        keys, own = list(sampler), share.of(batch_size)
        starts = range(0, len(keys) - batch_size + 1, batch_size)
        shares = [key for start in starts for key in keys[start : start + batch_size][own]]
        for x, y in self._load(own.stop - own.start, shares, drop_last=True):
            yield Batch(x, y)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in the order of their paths."""
        keys = [(0, position) for position in range(len(self))]
        yield from self._load(_EVALUATION_BATCH, keys, drop_last=False)

    def _load(
        self, batch_size: int, keys: list[tuple[int, int]], *, drop_last: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size,
            sampler=keys,
            drop_last=drop_last,
            num_workers=self.loaders,
            # Jobs are spawned, and would spawn these too: seconds for each pass over a split.
            multiprocessing_context="fork" if self.loaders else None,
            pin_memory=torch.device(self.device).type == "cuda",
            generator=torch.Generator(),  # Else it draws from the stream that dropout uses.
        )
        for x, y in loader:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
