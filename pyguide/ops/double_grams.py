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
from pyguide.ops.first_derivative import first_derivative_only, needs_gradient
from pyguide.ops.gram import native_gram, native_gram_backward

__all__ = ["double_grams"]

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


class _DoubleGrams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(*layers)
        return _grams(layers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers: tuple[Tensor, ...] = ctx.saved_tensors
        computed: list[Tensor] = []
        for group in _groups(layers):
            doubles = [x.double() for x in layers[group]]
            every = list(range(len(doubles)))
            of_group = native_gram_backward(grad[group], doubles, every, True, HIGHEST)
            computed += [g.to(x.dtype) for x, g in zip(layers[group], of_group, strict=True)]
        return tuple(first_derivative_only(computed, grad, *layers))


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    if not has_native_backend(layers[0].device):
        return reference.gram([x.double() for x in layers])
    if needs_gradient(layers):
        result: Tensor = _DoubleGrams.apply(*layers)
        return result
    return _grams(layers)  # see align in pyguide/ops/cka_operators.py


def double_grams(layers: Sequence[Tensor]) -> list[Tensor]:
    """``H X X^T H`` of each layer, (n, n) float64, differentiable once.

    The layers were checked. Gradients are formed in float64 and rounded once.
    """
    grams: dict[int, Tensor] = {}
    # Apart, so that no gradient is formed of matrices that need none.
    for needs_grad in (False, True):
        positions = [i for i, x in enumerate(layers) if x.requires_grad == needs_grad]
        if positions:
            stacked = _stacked([layers[i] for i in positions])
            grams.update(zip(positions, stacked.unbind(), strict=True))
    return [grams[i] for i in range(len(layers))]
