"""The distinct layers of a list of pairs: what is computed once, however many pairs use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.ops.contract import result_dtype

__all__ = ["distinct_layers", "no_values"]


def distinct_layers(
    xs: Sequence[Tensor], ys: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[int], list[int]]:
    """The distinct layers that pairs of xs and ys use, and each pair's positions among them.

    Distinct by object identity. Layers that no pair uses are left out.
    """
    used = [xs[i] for i, _ in pairs] + [ys[j] for _, j in pairs]
    layers, positions = _distinct(used)
    return layers, positions[: len(pairs)], positions[len(pairs) :]


def _distinct(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    distinct: list[Tensor] = []
    positions: list[int] = []
    if torch.compiler.is_compiling():  # Dynamo traces `is`, not `id`
        for t in tensors:
            found = [p for p, other in enumerate(distinct) if other is t]
            positions.append(found[0] if found else len(distinct))
            if not found:
                distinct.append(t)
        return distinct, positions
    known: dict[int, int] = {}
    for t in tensors:
        position = known.setdefault(id(t), len(distinct))
        if position == len(distinct):
            distinct.append(t)
        positions.append(position)
    return distinct, positions


def no_values(xs: Sequence[Tensor], ys: Sequence[Tensor], per_token: bool) -> tuple[Tensor, Tensor]:
    """Values and flags of no pairs: (0,), or (0, T)."""
    some = next(iter((*xs, *ys)), None)
    device = None if some is None else some.device
    shape = (0,) if some is None or not per_token else (0, some.size(1))
    values = torch.zeros(shape, dtype=result_dtype([*xs, *ys]), device=device)
    return values, torch.zeros(shape, dtype=torch.bool, device=device)
