"""Linear CKA of a batch that is spread over processes, through d x d products of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide.distributed.redistribution import Samples, total_
from pyguide.ops import feature_space
from pyguide.ops.contract import HIGHEST, result_dtype
from pyguide.ops.first_derivative import by_input

__all__ = ["feature_space_cka"]


def feature_space_cka(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], debiased: bool, samples: Samples
) -> tuple[Tensor, Tensor]:
    """CKA of pairs of layers and which have a degenerate one, (P,) each, in every process.

    Parameters
    ----------
    layers : sequence of Tensor, each (n, ...)
        This process's samples. The gradient in them is the true one times the processes.
    pairs : sequence of (int, int)
        Indices into `layers`.
    debiased : bool
        The debiased estimator.
    samples : Samples
        The processes.
    """
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    values, degenerate = _CKA.apply(left, right, debiased, _Union(samples), *layers)
    return values, degenerate


class _Union:
    """The samples of all processes: see :class:`pyguide.ops.feature_space.Union`."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    @property
    def n(self) -> int:
        return self.samples.n

    def total_(self, tensors: Sequence[Tensor]) -> None:
        total_(tensors, self.samples)


class _CKA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: list[int], right: list[int], debiased: bool, union: _Union, *layers: Tensor
    ) -> tuple[Tensor, Tensor]:
        values, degenerate, saved = feature_space.forward(
            list(layers), left, right, debiased, False, HIGHEST, union
        )
        ctx.arguments = left, right, debiased, union
        ctx.layers = len(layers)
        ctx.save_for_backward(values, degenerate, *layers, *saved)
        ctx.mark_non_differentiable(degenerate)
        return values.to(result_dtype(layers), copy=True), degenerate

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        values, degenerate, *rest = ctx.saved_tensors
        layers, saved = rest[: ctx.layers], rest[ctx.layers :]
        left, right, debiased, union = ctx.arguments
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        scaled = grad * union.samples.processes
        computed = feature_space.backward(
            scaled,
            values,
            degenerate,
            saved,
            layers,
            left,
            right,
            wanted,
            debiased,
            False,
            HIGHEST,
            union,
        )
        return (None, None, None, None, *by_input(computed, wanted, grad, layers))
