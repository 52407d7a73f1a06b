"""Calls of the native CPU backend on tensors: allocates outputs, passes pointers.

Nothing here is differentiable and nothing is checked beyond what the native code checks;
the operators of this package do that. csrc/cpu/ops.h says what each call computes. The functions
are those of pyguide/ops/cuda.py; ``precision`` means nothing here, since CPUs always compute
at the highest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide import _native
from pyguide.ops.contract import (
    CENTER_H,
    CENTER_NONE,
    CENTER_U,
    HIGHEST,
    Alignment,
    result_dtype,
    token_count,
)
from pyguide.ops.views import DTYPE_CODES, Outputs, view_of

__all__ = [
    "align",
    "alignment",
    "alignment_backward",
    "apply",
    "centered_grams",
    "coefficients",
    "gram",
    "gram_backward",
    "stats_shape",
]

# Empty: the best that this CPU has. Tests set it to run every instance that is compiled in.
instruction_set = ""


def stats_shape(matrices: int, n: int) -> tuple[int, ...]:
    """Shape of :attr:`Alignment.stats`."""
    return (matrices, 2)


def _gram(
    layers: Sequence[Tensor], centering: int, per_token: bool = False
) -> tuple[Tensor, Tensor]:
    n = layers[0].size(0)
    count = len(layers) * token_count(layers, per_token)
    grams = torch.empty((count, n, n), dtype=result_dtype(layers), device="cpu")
    stats = torch.empty(stats_shape(count, n), dtype=torch.float64, device="cpu")
    views, owners = zip(*(view_of(x, per_token) for x in layers), strict=True)
    _native.gram(
        views,
        centering,
        grams.data_ptr(),
        DTYPE_CODES[grams.dtype],
        n,
        stats.data_ptr(),
        torch.get_num_threads(),
        instruction_set,
    )
    del owners  # the views pointed into them until here
    return grams, stats


def gram(
    layers: Sequence[Tensor], *, center: bool, per_token: bool = False, precision: int = HIGHEST
) -> Tensor:
    """Gram matrices of L layers of T tokens, H-centred if ``center``: (L T, n, n)."""
    return _gram(layers, CENTER_H if center else CENTER_NONE, per_token)[0]


def centered_grams(
    layers: Sequence[Tensor], *, debiased: bool, precision: int = HIGHEST
) -> tuple[Tensor, Tensor]:
    """Centred Gram matrices K° (L, n, n), and tr(Kc) and ||K°||^2 of each: (L, 2) float64."""
    return _gram(layers, CENTER_U if debiased else CENTER_H)


def alignment(
    layers: Sequence[Tensor],
    left: Sequence[int],
    right: Sequence[int],
    *,
    debiased: bool,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> Alignment:
    """Centre each layer's Gram once and align the pairs ``(left[p], right[p])``."""
    grams, stats = _gram(layers, CENTER_U if debiased else CENTER_H, per_token)
    return align(grams, stats, left, right, token_count(layers, per_token))


def align(
    grams: Tensor, stats: Tensor, left: Sequence[int], right: Sequence[int], tokens: int
) -> Alignment:
    """Align pairs of layers, of ``tokens`` matrices each, in a centred stack."""
    values = torch.empty(len(left) * tokens, dtype=torch.float64, device="cpu")
    degenerate = torch.empty(len(left) * tokens, dtype=torch.bool, device="cpu")
    _native.alignment(
        grams.data_ptr(),
        DTYPE_CODES[grams.dtype],
        grams.size(0),
        grams.size(1),
        stats.data_ptr(),
        left,
        right,
        tokens,
        values.data_ptr(),
        degenerate.data_ptr(),
        torch.get_num_threads(),
        instruction_set,
    )
    return Alignment(values, degenerate, grams, stats)


def alignment_backward(
    grad: Tensor,
    forward: Alignment,
    layers: Sequence[Tensor],
    left: Sequence[int],
    right: Sequence[int],
    wanted: Sequence[int],
    *,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer, in its dtype and strides."""
    tokens = token_count(layers, per_token)
    a = coefficients(grad, forward, left, right, wanted, tokens)
    return apply(a, [layers[w] for w in wanted], shifted=True, per_token=per_token)


def coefficients(
    grad: Tensor,
    forward: Alignment,
    left: Sequence[int],
    right: Sequence[int],
    wanted: Sequence[int],
    tokens: int,
) -> Tensor:
    """A with ``d(grad * values).sum() = <A, dK> / 2`` for each wanted layer: (W T, n, n)."""
    grams = forward.grams
    n = grams.size(1)
    grad = grad.to(torch.float64).contiguous()
    out = torch.empty((len(wanted) * tokens, n, n), dtype=grams.dtype, device="cpu")
    _native.coefficients(
        grams.data_ptr(),
        DTYPE_CODES[grams.dtype],
        grams.size(0),
        n,
        forward.stats.data_ptr(),
        left,
        right,
        tokens,
        forward.values.data_ptr(),
        forward.degenerate.data_ptr(),
        grad.data_ptr(),
        wanted,
        out.data_ptr(),
        torch.get_num_threads(),
        instruction_set,
    )
    return out


def gram_backward(
    grad: Tensor,
    layers: Sequence[Tensor],
    wanted: Sequence[int],
    *,
    center: bool,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """Gradient of ``(grad * gram(layers)).sum()`` in each wanted layer."""
    if len(wanted) < len(layers):
        grad = grad[wanted]
    return apply(_symmetrize(grad, center), [layers[w] for w in wanted], shifted=center)


def _symmetrize(grads: Tensor, center: bool) -> Tensor:
    """``G + G^T`` of each (n, n) matrix, H-centred if ``center``."""
    grads = grads.contiguous()
    out = torch.empty_like(grads)
    layers, n = grads.shape[:2]
    _native.symmetrize(
        grads.data_ptr(),
        DTYPE_CODES[grads.dtype],
        layers,
        n,
        center,
        out.data_ptr(),
        torch.get_num_threads(),
        instruction_set,
    )
    return out


def apply(
    coefficients: Tensor,
    layers: Sequence[Tensor],
    *,
    shifted: bool,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """``A_l (X_l - s_l)`` for symmetric A (L, n, n), in each layer's dtype and strides."""
    outputs = Outputs(layers, per_token)
    _native.apply(
        coefficients.data_ptr(),
        DTYPE_CODES[coefficients.dtype],
        coefficients.size(1),
        outputs.layer_views,
        outputs.views,
        shifted,
        torch.get_num_threads(),
        instruction_set,
    )
    return outputs.collect()
