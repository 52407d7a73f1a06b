"""CKA through n x n Gram matrices, by the native kernels."""

from __future__ import annotations

from torch import Tensor

from pyguide.ops import native

__all__ = ["backward", "fake_saved", "forward"]


def forward(
    layers: list[Tensor], left: list[int], right: list[int], debiased: bool, per_token: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Values (P T,) float64, degenerate flags (P T,) bool, and what the gradient needs."""
    result = native.alignment(layers, left, right, debiased=debiased, per_token=per_token)
    return result.values, result.degenerate, [result.grams, result.stats]


def fake_saved(
    layers: list[Tensor], left: list[int], right: list[int], per_token: bool
) -> list[Tensor]:
    """Shapes of what :func:`forward` saves."""
    x, n = layers[0], layers[0].size(0)
    count = len(layers) * native.token_count(layers, per_token)
    dtype = native.result_dtype(layers)
    return [x.new_empty((count, n, n), dtype=dtype), x.new_empty((count, 2)).double()]


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
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer."""
    grams, stats = saved
    result = native.Alignment(values, degenerate, grams, stats)
    return native.alignment_backward(grad, result, layers, left, right, wanted, per_token)
