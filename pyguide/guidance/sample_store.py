"""The activations of a data set's samples, or their Gram matrices, in memory or in a folder."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.guidance.cache_folder import CacheFolder
from pyguide.guidance.sample_grams import batch_gram, fill_gram

__all__ = ["KeptLayer", "SampleStore"]

_File = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


class KeptLayer(NamedTuple):
    """A layer's name, and its activations for one sample."""

    label: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class SampleStore:
    """Activations of N samples on the CPU; Gram matrices in their place when all are there.

    Parameters
    ----------
    samples : int
        N.
    folder : CacheFolder, optional
        Where they are; by default in memory.
    gram_dtype : torch.dtype, optional
        That of (N, N) Gram matrices; by default the activations stay.
    device : torch.device
        Where Gram matrices are computed.

    Raises
    ------
    UserError
        If another process fills the folder.
    ValueError
        If the folder is of something else, or damaged.
    """

    def __init__(
        self,
        samples: int,
        folder: CacheFolder | None,
        gram_dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self._samples, self._folder = samples, folder
        self._gram_dtype, self._device = gram_dtype, device
        #: None before the first sample.
        self.layers: list[KeptLayer] | None = None
        #: (N,) bool: which samples are there.
        self.present = torch.zeros(samples, dtype=torch.bool, device="cpu")
        #: Whether all are.
        self.complete = False
        #: Whether what is kept are Gram matrices.
        self.has_grams = False
        self._tensors: list[Tensor] = []
        if folder is not None:
            self._open(folder)
            weakref.finalize(self, folder.close)

    def _open(self, folder: CacheFolder) -> None:
        self._read(folder)
        if not self._finished:
            folder.lock()
            self._read(folder)  # again: another process may just have finished it
        if self._finished:
            folder.close()
        if self.layers is not None:
            self._tensors = (self._map_grams if self.has_grams else self._map)(folder.mapped)
        if self.complete:
            self._finish()

    def _read(self, folder: CacheFolder) -> None:
        description = folder.read_description()
        if description is None:
            return
        self.has_grams = description["grams"]
        self.layers = [
            KeptLayer(label, tuple(shape), getattr(torch, dtype))
            for label, shape, dtype in description["layers"]
        ]
        record = folder.read_record()
        if record is not None:
            self.present = record
            self.complete = bool(record.all())

    @property
    def _finished(self) -> bool:
        return self.complete and self.has_grams == (self._gram_dtype is not None)

    def layer(self, at: int) -> KeptLayer:
        """One of the layers."""
        assert self.layers is not None
        return self.layers[at]

    def positions(self, labels: Sequence[str]) -> list[int]:
        """Where these layers are."""
        assert self.layers is not None
        known = [layer.label for layer in self.layers]
        return [known.index(label) for label in labels]

    def create(self, layers: Sequence[KeptLayer]) -> None:
        """Make room for the activations of these layers."""
        self.layers = list(layers)
        if self._folder is None:
            self._tensors = self._map(_in_memory)
            return
        self._folder.remove(["present.pt"])  # of a folder that lost its description
        try:
            self._tensors = self._map(self._folder.allocate)
        except OSError:
            self._folder.remove(_files("layer", layers))
            self.layers = None
            raise
        self._folder.describe(self._description())

    def _description(self) -> dict[str, object]:
        assert self.layers is not None
        layers = [(x.label, x.shape, str(x.dtype).removeprefix("torch.")) for x in self.layers]
        return {"layers": layers, "grams": self.has_grams}

    def has(self, ids: Tensor) -> bool:
        """Whether all these samples are there."""
        return self.complete or bool(self.present[ids].all())

    def put(self, ids: Tensor, rows: Sequence[Tensor]) -> None:
        """Keep the rows of samples that are not there yet; a sample never changes.

        Raises
        ------
        ValueError
            If rows of samples that are there are others.
        """
        missing = ~self.present[ids]
        new = missing.nonzero().squeeze(1)
        known = (~missing).nonzero().squeeze(1)
        for at, row in enumerate(rows):
            if len(known):
                self._check_same(at, ids[known], _some(row, known))
        for tensor, row in zip(self._tensors, rows, strict=True):
            tensor.index_copy_(0, ids[new], _some(row, new).to(tensor.dtype))
        if len(new) and len(ids[new].unique()) < len(new):
            for at, row in enumerate(rows):  # One of each was kept.
                self._check_same(at, ids[new], _some(row, new))
        self.present[ids[new]] = True
        self.complete = bool(self.present.all())
        if self._folder is not None:
            self._folder.record(self.present, _files("layer", rows))
        if self.complete:
            self._finish()

    def _check_same(self, at: int, ids: Tensor, row: Tensor) -> None:
        kept = self.take(at, ids).double()
        # Far above what rounding makes of another batch or a narrower type.
        if (row.double() - kept).norm() > 0.1 * kept.norm():
            raise ValueError(
                f"guide layer {self.layer(at).label!r} gives something else than before for "
                f"samples such as {int(ids[0])}: the guide's input of a sample must be the same in "
                "every epoch. Pass what is not augmented as guide_inputs="
            )

    def take(self, at: int, ids: Tensor) -> Tensor:
        """(n, ...) activations of a layer."""
        return self._tensors[at].index_select(0, ids)

    def take_gram(self, at: int, ids: Tensor) -> Tensor:
        """(n, n) centred Gram matrix of a layer."""
        is_double = self.layer(at).dtype == torch.float64
        return batch_gram(self._tensors[at], ids, torch.float64 if is_double else torch.float32)

    def close(self) -> None:
        """Let others write to the folder."""
        if self._folder is not None:
            self._folder.close()

    def _finish(self) -> None:
        """All samples are there: turn them into Gram matrices, if that is wanted."""
        if not self._finished:
            self._compute_grams()
        self.close()

    def _compute_grams(self) -> None:
        folder, names = self._folder, _files("gram", self._tensors)
        if folder is None:
            for at, (name, x) in enumerate(zip(names, self._tensors, strict=True)):
                assert self._gram_dtype is not None
                gram = _in_memory(name, (self._samples, self._samples), self._gram_dtype)
                fill_gram(gram, x, self._device)
                self._tensors[at] = gram  # the activations are not needed any longer
            self.has_grams = True
            return
        grams = self._map_grams(folder.allocate)
        for gram, x in zip(grams, self._tensors, strict=True):
            fill_gram(gram, x, self._device)
        folder.sync(names)
        self._tensors, self.has_grams = grams, True
        folder.write_record()
        folder.describe(self._description())
        folder.remove(_files("layer", names))

    def _map(self, file: _File) -> list[Tensor]:
        assert self.layers is not None
        return [
            file(name, (self._samples, *layer.shape), layer.dtype)
            for name, layer in zip(_files("layer", self.layers), self.layers, strict=True)
        ]

    def _map_grams(self, file: _File) -> list[Tensor]:
        assert self.layers is not None and self._gram_dtype is not None
        shape = self._samples, self._samples
        return [file(name, shape, self._gram_dtype) for name in _files("gram", self.layers)]


def _some(row: Tensor, positions: Tensor) -> Tensor:
    """Some samples of a batch on the CPU."""
    some = row if len(positions) == len(row) else row[positions.to(row.device)]
    return some.cpu()


def _files(kind: str, layers: Sequence[object]) -> list[str]:
    return [f"{kind}_{at:03d}.bin" for at in range(len(layers))]


def _in_memory(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # Whatever torch.set_default_device says.
    return torch.empty(shape, dtype=dtype, device="cpu")
