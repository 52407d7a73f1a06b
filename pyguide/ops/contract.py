"""What the backends agree on: the codes of native enumerations and the types of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CENTER_H",
    "CENTER_NONE",
    "CENTER_U",
    "HIGHEST",
    "PRECISIONS",
    "Alignment",
    "result_dtype",
    "token_count",
]

# The numbers of `enum class Centering` in csrc/core/matrix_view.h.
CENTER_NONE, CENTER_H, CENTER_U = 0, 1, 2

# In the order of `enum class Precision` in csrc/cuda/api.h.
PRECISIONS = ("highest", "high", "medium")
HIGHEST = 0


def result_dtype(layers: Sequence[Tensor]) -> torch.dtype:
    """float64 if every layer is, else float32."""
    return torch.float64 if all(x.dtype == torch.float64 for x in layers) else torch.float32


def token_count(layers: Sequence[Tensor], per_token: bool) -> int:
    """How many matrices each of the layers is: its tokens if they are compared one by one."""
    return layers[0].size(1) if per_token else 1


class Alignment(NamedTuple):
    """CKA of P pairs of T tokens, and what its gradient needs; T is 1 for whole layers."""

    values: Tensor  # (P T,) float64
    degenerate: Tensor  # (P T,) bool
    grams: Tensor  # (L T, n, n), centred
    stats: Tensor  # float64, the backend's stats_shape(): sums to tr(Kc), ||K°||^2
