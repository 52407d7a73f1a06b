"""Gram matrices of many layers in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops import native
from pyguide.ops.first_derivative import first_derivative_only
from pyguide.ops.inputs import check_layers, check_precision, has_native_backend
from pyguide.ops.library import register

__all__ = ["gram"]


def _forward(layers: list[Tensor], center: bool) -> Tensor:
    return native.gram(layers, center=center)


def _fake_forward(layers: list[Tensor], center: bool) -> Tensor:
    n = layers[0].size(0)
    return layers[0].new_empty((len(layers), n, n), dtype=native.result_dtype(layers))


def _backward(grad: Tensor, layers: list[Tensor], wanted: list[int], center: bool) -> list[Tensor]:
    if len(wanted) < len(layers):
        grad = grad[wanted]
    coefficients = native.symmetrize(grad, center=center)
    return native.apply(coefficients, [layers[w] for w in wanted], shifted=center)


def _fake_backward(
    grad: Tensor, layers: list[Tensor], wanted: list[int], center: bool
) -> list[Tensor]:
    return [torch.empty_like(layers[w]) for w in wanted]


_gram = register("gram(Tensor[] layers, bool center) -> Tensor", cpu=_forward, fake=_fake_forward)
_gram_backward = register(
    "gram_backward(Tensor grad, Tensor[] layers, int[] wanted, bool center) -> Tensor[]",
    cpu=_backward,
    fake=_fake_backward,
)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, center: bool, *layers: Tensor) -> Tensor:
        ctx.center = center
        ctx.save_for_backward(*layers)
        return _gram(list(layers), center)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        grads: list[Tensor | None] = [None] * len(layers)
        computed = _gram_backward(grad, list(layers), wanted, ctx.center)
        computed = first_derivative_only(computed, grad, *layers)
        for w, g in zip(wanted, computed, strict=True):
            grads[w] = g
        return (None, *grads)


def gram(xs: Sequence[Tensor], *, center: bool = True, precision: str | None = None) -> Tensor:
    """Gram matrices of L layers.

    ``K = X X^T`` for each layer's n x d matrix X (every axis but the first is flattened),
    centred to ``H K H`` with ``H = I - 11^T/n`` by default. A per-feature shift is
    subtracted before the product, so a centred Gram matrix keeps its digits however far
    the features are from zero.

    Parameters
    ----------
    xs : sequence of Tensor, each (n, ...)
        float64, float32, bfloat16 or float16; the feature axes may differ.
    center : bool
        Return ``H K H`` instead of ``K``.
    precision : {"highest", "high", "medium"}, optional
        As torch's float32 matmul precision, which is the default. CPUs always compute at
        "highest".

    Returns
    -------
    Tensor, (L, n, n)
        float64 if every layer is float64, else float32. Differentiable once.

    Raises
    ------
    TypeError, ValueError
        For an empty list, layers that differ in n or device, n < 2, or an unsupported
        dtype or layout.

    Examples
    --------
    >>> import torch, pyguide
    >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> pyguide.gram([x])
    tensor([[[ 1., -1.],
             [-1.,  1.]]])
    """
    check_precision(precision)
    check_layers([("xs[]", xs)], min_samples=2)
    if len(xs) == 0:
        raise ValueError("xs must hold at least one layer, got an empty list")
    if not has_native_backend(xs[0].device):
        return reference.gram(xs, center=center)
    if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
        result: Tensor = _Gram.apply(center, *xs)
        return result
    return _gram(list(xs), center)  # see _align in pyguide/ops/cka.py
