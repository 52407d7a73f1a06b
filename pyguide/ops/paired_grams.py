"""Float64 Gram matrices of the layers that pairs use: where Ridge, Procrustes and Bures start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.ops.contract import result_dtype
from pyguide.ops.distinct import distinct_layers
from pyguide.ops.double_gram import double_gram
from pyguide.ops.inputs import check_layers, check_pairs, check_tokens

__all__ = ["PairedGrams", "paired_grams"]


class PairedGrams(NamedTuple):
    """The matrices of L distinct layers, or of L layers' T tokens, and which of them are pairs."""

    grams: Tensor  # (L, n, n) float64, H-centred
    left: list[int]
    right: list[int]
    wanted: list[bool]  # which matrices need a gradient
    shape: tuple[int, ...]  # of the results: (P,) or (P, T)
    dtype: torch.dtype  # of the distances

    def either(self, of_layers: Tensor) -> Tensor:
        """Which pairs have a layer that a (L,) bool tensor marks, (P,) bool."""
        marked = of_layers.unbind()
        found = [marked[i] | marked[j] for i, j in zip(self.left, self.right, strict=True)]
        return torch.stack(found) if found else of_layers

    def results(self, values: Tensor, flags: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Distances and flags of the pairs in their shape, and the distances in their type."""
        flags = None if flags is None else flags.view(self.shape)
        return values.to(self.dtype).view(self.shape), flags


def paired_grams(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]] | None,
    *,
    per_token: bool,
    min_samples: int,
    project: Callable[[Tensor], Tensor] | None = None,
) -> PairedGrams:
    """Check what a distance was given and compute each distinct layer's Gram matrix once.

    ``project`` is applied to every layer first. Tokens that are compared one by one are layers
    of their own here.
    """
    groups = (("xs[]", xs), ("ys[]", ys))
    check_layers(groups, min_samples=min_samples)
    if per_token:
        check_tokens(groups)
    checked = check_pairs(pairs, len(xs), len(ys))
    dtype = result_dtype([*xs, *ys])
    if not checked:
        return _without_pairs(xs, ys, per_token, dtype)
    layers, left, right = distinct_layers(xs, ys, checked)
    shape: tuple[int, ...] = (len(checked),)
    if per_token:
        tokens = layers[0].size(1)
        shape = (len(checked), tokens)
        layers = [token for x in layers for token in x.unbind(1)]
        left, right = (
            [i * tokens + t for i in side for t in range(tokens)] for side in (left, right)
        )
    wanted = [x.requires_grad for x in layers]
    if project is not None:
        layers = [project(x) for x in layers]
    return PairedGrams(double_gram(layers), left, right, wanted, shape, dtype)


def _without_pairs(
    xs: Sequence[Tensor], ys: Sequence[Tensor], per_token: bool, dtype: torch.dtype
) -> PairedGrams:
    some = next(iter((*xs, *ys)), None)
    device = None if some is None else some.device
    shape = (0,) if some is None or not per_token else (0, some.size(1))
    grams = torch.empty((0, 0, 0), dtype=torch.float64, device=device)
    return PairedGrams(grams, [], [], [], shape, dtype)
