"""Calls of the native CPU backend on tensors: allocates outputs, passes pointers.

Nothing here is differentiable and nothing is checked beyond what the native code checks;
the operators of this package do that. csrc/cpu/ops.h says what each call computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyguide import _native
from pyguide.ops.views import DTYPE_CODES, matched_views, view_of

__all__ = [
    "Alignment",
    "alignment",
    "alignment_backward",
    "apply",
    "gram",
    "result_dtype",
    "symmetrize",
    "token_count",
]

# `enum class Centering` in csrc/core/matrix_view.h.
_NONE, _H, _U = 0, 1, 2

# Empty: the best that this CPU has. Tests set it to run every instance that is compiled in.
instruction_set = ""


def result_dtype(layers: Sequence[Tensor]) -> torch.dtype:
    """float64 if every layer is, else float32."""
    return torch.float64 if all(x.dtype == torch.float64 for x in layers) else torch.float32


def token_count(layers: Sequence[Tensor], per_token: bool) -> int:
    """How many matrices each of the layers is: its tokens if they are compared one by one."""
    return layers[0].size(1) if per_token else 1


def _gram(
    layers: Sequence[Tensor], centering: int, per_token: bool = False
) -> tuple[Tensor, Tensor]:
    n = layers[0].size(0)
    count = len(layers) * token_count(layers, per_token)
    grams = torch.empty((count, n, n), dtype=result_dtype(layers))
    stats = torch.empty((count, 2), dtype=torch.float64)
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


def gram(layers: Sequence[Tensor], *, center: bool) -> Tensor:
    """Gram matrices of L layers, H-centred if ``center``: (L, n, n)."""
    return _gram(layers, _H if center else _NONE)[0]


class Alignment(NamedTuple):
    """CKA of P pairs of T tokens, and what its gradient needs; T is 1 for whole layers."""

    values: Tensor  # (P T,) float64
    degenerate: Tensor  # (P T,) bool
    grams: Tensor  # (L T, n, n), centred
    stats: Tensor  # (L T, 2) float64: tr(Kc), ||K°||^2


def alignment(
    layers: Sequence[Tensor],
    left: Sequence[int],
    right: Sequence[int],
    *,
    debiased: bool,
    per_token: bool = False,
) -> Alignment:
    """Centre each layer's Gram once and align the pairs ``(left[p], right[p])``."""
    grams, stats = _gram(layers, _U if debiased else _H, per_token)
    tokens = token_count(layers, per_token)
    values = torch.empty(len(left) * tokens, dtype=torch.float64)
    degenerate = torch.empty(len(left) * tokens, dtype=torch.bool)
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
    per_token: bool = False,
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer, in its dtype and strides."""
    grams = forward.grams
    n = grams.size(1)
    tokens = token_count(layers, per_token)
    grad = grad.to(torch.float64).contiguous()
    coefficients = torch.empty((len(wanted) * tokens, n, n), dtype=grams.dtype)
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
        coefficients.data_ptr(),
        torch.get_num_threads(),
        instruction_set,
    )
    return apply(coefficients, [layers[w] for w in wanted], shifted=True, per_token=per_token)


def symmetrize(grads: Tensor, *, center: bool) -> Tensor:
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
    coefficients: Tensor, layers: Sequence[Tensor], *, shifted: bool, per_token: bool = False
) -> list[Tensor]:
    """``A_l (X_l - s_l)`` for symmetric A (L, n, n), in each layer's dtype and strides."""
    outs = [torch.empty_like(x) for x in layers]
    matched = [matched_views(x, out, per_token) for x, out in zip(layers, outs, strict=True)]
    _native.apply(
        coefficients.data_ptr(),
        DTYPE_CODES[coefficients.dtype],
        coefficients.size(1),
        [m[0] for m in matched],
        [m[1] for m in matched],
        shifted,
        torch.get_num_threads(),
        instruction_set,
    )
    for out, (_, _, _, written) in zip(outs, matched, strict=True):
        if written is not out:
            out.copy_(written)
    return outs
