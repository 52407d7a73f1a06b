"""Gram matrices of many layers in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.contract import result_dtype
from pyguide.ops.dispatch import backend_of, has_native_backend
from pyguide.ops.first_derivative import by_input, needs_gradient
from pyguide.ops.inputs import check_layers, check_precision
from pyguide.ops.library import register
from pyguide.ops.precision import precision_code

__all__ = ["gram", "native_gram", "native_gram_backward"]


def _forward(layers: list[Tensor], center: bool, precision: int) -> Tensor:
    return backend_of(layers[0].device).gram(layers, center=center, precision=precision)


def _fake_forward(layers: list[Tensor], center: bool, precision: int) -> Tensor:
    n = layers[0].size(0)
    return layers[0].new_empty((len(layers), n, n), dtype=result_dtype(layers))


def _backward(
    grad: Tensor, layers: list[Tensor], wanted: list[int], center: bool, precision: int
) -> list[Tensor]:
    backend = backend_of(layers[0].device)
    return backend.gram_backward(grad, layers, wanted, center=center, precision=precision)


def _fake_backward(
    grad: Tensor, layers: list[Tensor], wanted: list[int], center: bool, precision: int
) -> list[Tensor]:
    return [torch.empty_like(layers[w]) for w in wanted]


native_gram = register(
    "gram(Tensor[] layers, bool center, int precision) -> Tensor",
    implementation=_forward,
    fake=_fake_forward,
)
native_gram_backward = register(
    "gram_backward(Tensor grad, Tensor[] layers, int[] wanted, bool center, int precision)"
    " -> Tensor[]",
    implementation=_backward,
    fake=_fake_backward,
)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, center: bool, precision: int, *layers: Tensor) -> Tensor:
        ctx.arguments = center, precision
        ctx.save_for_backward(*layers)
        return native_gram(list(layers), center, precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        computed = native_gram_backward(grad, list(layers), wanted, *ctx.arguments)
        return (None, None, *by_input(computed, wanted, grad, layers))


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
        How float32 features are multiplied, see :func:`pyguide.cka_pairs`.

    Returns
    -------
    Tensor, (L, n, n)
        float64 if every layer is float64, else float32. Differentiable once.

    Raises
    ------
    TypeError, ValueError
        For an empty list, layers that differ in n or device, n < 2, or an unsupported
        dtype or layout.
    RuntimeError
        Under forward-mode AD, torch.func.grad, jvp or vmap: :mod:`pyguide.reference` has these.

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
    code = precision_code(precision, xs[0].device)
    if needs_gradient(xs):
        result: Tensor = _Gram.apply(center, code, *xs)
        return result
    return native_gram(list(xs), center, code)  # see align in pyguide/ops/cka_operators.py
