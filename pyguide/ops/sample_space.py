"""CKA through n x n Gram matrices, by the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyguide.ops.contract import Alignment, result_dtype, token_count
from pyguide.ops.dispatch import backend_of

__all__ = ["backward", "fake_saved", "forward", "workspace_bytes"]


def forward(
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    debiased: bool,
    per_token: bool,
    precision: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Values (P T,) float64, degenerate flags (P T,) bool, and what the gradient needs."""
    result = backend_of(layers[0].device).alignment(
        layers, left, right, debiased=debiased, per_token=per_token, precision=precision
    )
    return result.values, result.degenerate, [result.grams, result.stats]


def fake_saved(
    layers: list[Tensor], left: list[int], right: list[int], per_token: bool
) -> list[Tensor]:
    """Shapes of what :func:`forward` saves."""
    x, n = layers[0], layers[0].size(0)
    count = len(layers) * token_count(layers, per_token)
    stats_shape = backend_of(x.device).stats_shape(count, n)
    return [
        x.new_empty((count, n, n), dtype=result_dtype(layers)),
        x.new_empty(stats_shape, dtype=torch.float64),
    ]


def workspace_bytes(layers: list[Tensor], dtype: torch.dtype, debiased: bool) -> int:
    """Of :func:`backward`, for one token: the coefficients of the layers that require grad."""
    n = layers[0].size(0)
    return sum(x.requires_grad for x in layers) * n * n * dtype.itemsize


def backward(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    saved: list[Tensor],
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    wanted: list[int],
    debiased: bool,
    per_token: bool,
    precision: int,
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer."""
    grams, stats = saved
    return backend_of(layers[0].device).alignment_backward(
        grad,
        Alignment(values, degenerate, grams, stats),
        layers,
        left,
        right,
        wanted,
        per_token=per_token,
        precision=precision,
    )
