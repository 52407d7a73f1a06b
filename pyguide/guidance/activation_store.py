"""The paired activations of a large batch, filled chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.capture.recorder import Captured, Source
from pyguide.guidance.comparison import Captures

__all__ = ["ActivationStore"]


class ActivationStore:
    """The activations of some layers for n samples.

    Parameters
    ----------
    sources : sequence of Source
        The layers, for the errors.
    n : int
        Samples in all.
    dtype : torch.dtype, optional
        In which they are kept; by default their own.
    device : torch.device, optional
        Where they are kept; by default where they are.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        n: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._sources, self._n = sources, n
        self._dtype, self._device = dtype, device
        self._layers: list[Tensor | None] = [None] * len(sources)
        self._masks: list[list[Tensor]] = [[] for _ in sources]
        self._from: list[torch.device] = []

    def put(self, chunk: slice, captures: Captures) -> None:
        """Keep the activations of some samples.

        Raises
        ------
        ValueError
            If a layer gave another number of samples, or another shape than before.
        """
        self._from = self._from or [captured.tensor.device for captured in captures]
        for at, (tensor, mask, _) in enumerate(captures):
            kept = self._layers[at]
            if kept is None:
                shape = (self._n, *tensor.shape[1:])
                dtype, device = self._dtype or tensor.dtype, self._device or tensor.device
                kept = self._layers[at] = torch.empty(shape, dtype=dtype, device=device)
            expected = (chunk.stop - chunk.start, *kept.shape[1:])
            if tensor.shape != expected:
                raise ValueError(
                    f"layer {self._sources[at].name!r} gave {tuple(tensor.shape)} for a chunk, "
                    f"expected {expected}: the chunks of a batch must agree in all axes but the "
                    "first (pad sequences to one length)"
                )
            kept[chunk] = tensor
            if mask is not None:
                self._masks[at].append(mask)

    def take(self, at: int, *, last: bool) -> Captured:
        """A layer, where it was captured; with `last` it is not kept any longer."""
        kept = self._layers[at]
        assert kept is not None
        if last:
            self._layers[at] = None
        masks = self._masks[at]
        return Captured(kept.to(self._from[at]), torch.cat(masks) if masks else None)

    def shapes(self) -> list[Captured]:
        """All layers, without their values."""
        kept = [layer for layer in self._layers if layer is not None]
        return [Captured(torch.empty_like(layer, device="meta"), None) for layer in kept]
