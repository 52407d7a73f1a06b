"""What a backward pass returns: gradients by input, and a clear error for second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["by_input", "first_derivative_only"]


class _FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "pyguide's native operators have first derivatives only; for a second derivative "
            "use pyguide.reference, which has Gram matrices, CKA, RBF CKA and RSA in plain torch"
        )


def first_derivative_only(grads: list[Tensor], *inputs: Tensor) -> list[Tensor]:
    """The gradients, made to raise when they are differentiated again in any input.

    Costs nothing unless the backward pass runs with ``create_graph=True``.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return grads
    return list(_FirstDerivativeOnly.apply(len(grads), *grads, *inputs))


def by_input(
    computed: list[Tensor], wanted: Sequence[int], grad: Tensor, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of the wanted inputs, :func:`first_derivative_only`, and None of the others."""
    grads: list[Tensor | None] = [None] * len(inputs)
    for w, g in zip(wanted, first_derivative_only(computed, grad, *inputs), strict=True):
        grads[w] = g
    return grads
