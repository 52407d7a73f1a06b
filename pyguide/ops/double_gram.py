"""Centred Gram matrices in float64 of layers of any dtype.

For what takes roots of their eigenvalues or solves with them: a Gram matrix in float32 has an
error of 6e-8 of the largest eigenvalue in each of them, whose root is 2e-4 of the largest
singular value, and n of these add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.contract import HIGHEST
from pyguide.ops.dispatch import has_native_backend
from pyguide.ops.first_derivative import first_derivative_only
from pyguide.ops.gram import native_gram, native_gram_backward

__all__ = ["double_gram"]

# The layers that are float64 copies at the same time hold at most so many numbers (128 MB),
# unless one alone has more.
_LARGEST_COPY = 1 << 24


def _groups(layers: Sequence[Tensor]) -> Iterator[slice]:
    """Runs of layers that are copied together."""
    first, size = 0, 0
    for index, x in enumerate(layers):
        if index > first and size + x.numel() > _LARGEST_COPY:
            yield slice(first, index)
            first, size = index, 0
        size += x.numel()
    yield slice(first, len(layers))


def _grams(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            native_gram([x.double() for x in layers[group]], True, HIGHEST)
            for group in _groups(layers)
        ]
    )


class _DoubleGram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(*layers)
        return _grams(layers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers: tuple[Tensor, ...] = ctx.saved_tensors
        computed: list[Tensor] = []
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        rows = grad.unbind()
        for group in _groups([layers[w] for w in wanted]):
            inside = wanted[group]
            doubles = [layers[w].double() for w in inside]
            grads = torch.stack([rows[w] for w in inside])
            every = list(range(len(inside)))
            of_group = native_gram_backward(grads, doubles, every, True, HIGHEST)
            computed += [g.to(layers[w].dtype) for w, g in zip(inside, of_group, strict=True)]
        computed = first_derivative_only(computed, grad, *layers)
        by_layer = dict(zip(wanted, computed, strict=True))
        return tuple(by_layer.get(i) for i in range(len(layers)))


def double_gram(layers: Sequence[Tensor]) -> Tensor:
    """``H X X^T H`` of L layers, (L, n, n) float64, differentiable once.

    The layers, at least one, were checked. Gradients are formed in float64 and rounded once.
    """
    if not has_native_backend(layers[0].device):
        return reference.gram([x.double() for x in layers])
    if torch.is_grad_enabled() and any(x.requires_grad for x in layers):
        result: Tensor = _DoubleGram.apply(*layers)
        return result
    return _grams(layers)  # see _align in pyguide/ops/cka.py
