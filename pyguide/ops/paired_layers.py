"""The layers that a distance was given, checked, and which of them are pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.ops.contract import result_dtype
from pyguide.ops.distinct import distinct_layers
from pyguide.ops.inputs import check_layers, check_pairs, check_tokens

__all__ = ["PairedLayers", "paired_layers"]


class PairedLayers(NamedTuple):
    """Distinct layers, or their tokens if these are compared one by one, and the pairs."""

    layers: list[Tensor]
    left: list[int]
    right: list[int]
    shape: tuple[int, ...]  # of the results: (P,) or (P, T)
    dtype: torch.dtype  # of the distances
    device: torch.device

    def either(self, of_layers: Sequence[Tensor]) -> Tensor:
        """Which pairs have a layer that a bool of each layer marks, (P,)."""
        pairs = zip(self.left, self.right, strict=True)
        return self.stack([of_layers[i] | of_layers[j] for i, j in pairs], torch.bool)

    def stack(self, of_pairs: list[Tensor], dtype: torch.dtype) -> Tensor:
        """What each pair has, (P,)."""
        return torch.stack(of_pairs) if of_pairs else self.empty(dtype)

    def empty(self, dtype: torch.dtype) -> Tensor:
        """The results of no pairs."""
        return torch.empty(0, dtype=dtype, device=self.device)

    def results(self, values: Tensor, flags: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Distances and flags of the pairs in their shape, and the distances in their type."""
        flags = None if flags is None else flags.view(self.shape)
        return values.to(self.dtype).view(self.shape), flags


def paired_layers(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]] | None,
    *,
    per_token: bool,
    min_samples: int,
) -> PairedLayers:
    """Check what a distance was given, before any work."""
    groups = (("xs[]", xs), ("ys[]", ys))
    check_layers(groups, min_samples=min_samples)
    if per_token:
        check_tokens(groups)
    checked = check_pairs(pairs, len(xs), len(ys))
    dtype = result_dtype([*xs, *ys])
    some = next(iter((*xs, *ys)), torch.empty(0))
    layers, left, right = distinct_layers(xs, ys, checked)
    if not per_token or some.dim() < 2:
        return PairedLayers(layers, left, right, (len(checked),), dtype, some.device)
    tokens = some.size(1)
    return PairedLayers(
        [token for x in layers for token in x.unbind(1)],
        [i * tokens + t for i in left for t in range(tokens)],
        [j * tokens + t for j in right for t in range(tokens)],
        (len(checked), tokens),
        dtype,
        some.device,
    )
