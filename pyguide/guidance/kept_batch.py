"""A batch of samples that a guide cache has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.capture.recorder import Captured
from pyguide.guidance.sample_store import SampleStore

__all__ = ["KeptBatch"]


class KeptBatch:
    """What is kept of a batch, read when it is taken.

    Parameters
    ----------
    store : SampleStore
        That has the samples.
    layers : sequence of int
        Positions of the layers in it.
    ids : Tensor, (n,)
        The samples.
    device : torch.device
        Where the batch goes.
    """

    def __init__(
        self, store: SampleStore, layers: Sequence[int], ids: Tensor, device: torch.device
    ) -> None:
        self._store, self._layers, self._ids, self._device = store, layers, ids, device

    def take(self, at: int, *, last: bool = False) -> Captured:
        """A layer; `last` is that of :meth:`ActivationStore.take`, and means nothing here."""
        layer = self._layers[at]
        if self._store.has_grams:
            gram = self._sent(self._store.take_gram(layer, self._ids))
            return self._shape(at)._replace(gram=gram)
        return Captured(self._sent(self._store.take(layer, self._ids)), None)

    def _sent(self, x: Tensor) -> Tensor:
        # From memory that is not pinned a copy waits for what the GPU has to do.
        if self._device.type == "cuda":
            return x.pin_memory().to(self._device, non_blocking=True)
        return x.to(self._device)

    def take_all(self) -> list[Captured]:
        """All layers."""
        return [self.take(at) for at in range(len(self._layers))]

    def shapes(self) -> list[Captured]:
        """All layers, without their values."""
        return [self._shape(at) for at in range(len(self._layers))]

    def _shape(self, at: int) -> Captured:
        _, shape, dtype = self._store.layer(self._layers[at])
        n = len(self._ids)
        return Captured(torch.empty((n, *shape), dtype=dtype, device="meta"), None)
