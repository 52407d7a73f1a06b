"""Which derivatives there are: first ones, backward; a clear error for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["by_input", "first_derivative_only", "needs_gradient"]

_INSTEAD = "use pyguide.reference, which has Gram matrices, CKA, RBF CKA and RSA in plain torch"


class _FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "pyguide's native operators have first derivatives only; for a second derivative "
            f"{_INSTEAD}"
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


def needs_gradient(layers: Sequence[Tensor]) -> bool:
    """Whether autograd records what is computed of the layers.

    Raises
    ------
    RuntimeError
        For forward-mode derivatives, which would be missing without a word, and torch.func.
        Not in compiled code, where they are not seen.
    """
    others = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if others and not torch.compiler.is_compiling() and any(map(_is_transformed, layers)):
        raise RuntimeError(
            "pyguide's native operators have derivatives by backward() and torch.autograd.grad "
            f"only; for forward mode, torch.func.grad, jvp or vmap {_INSTEAD}"
        )
    return torch.is_grad_enabled() and any(x.requires_grad for x in layers)


def _is_transformed(x: Tensor) -> bool:
    """Whether x has a tangent, or is a variable of torch.func.grad, jvp or vmap."""
    wrappers = torch._C._functorch
    while wrappers.is_functorch_wrapped_tensor(x):  # functionalize wraps too, which is no matter
        if wrappers.is_gradtrackingtensor(x) or wrappers.is_batchedtensor(x):
            return True
        x = wrappers.get_unwrapped(x)
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
