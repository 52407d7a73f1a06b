"""Alignment of layers that are given by their centred Gram matrices.

For layers whose samples or features lie in several processes, where Gram matrices are sums over
them, and for layers whose Gram matrices are kept from before. :mod:`pyguide.ops.cka` and
:mod:`pyguide.ops.pairwise` compute the same from the layers themselves, in fewer passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.centering import center_
from pyguide.ops.contract import Alignment, result_dtype
from pyguide.ops.dispatch import backend_of, has_native_backend
from pyguide.ops.dissimilarities import dissimilarity
from pyguide.ops.first_derivative import by_input
from pyguide.ops.pairwise import Options, laplacians, similarities

__all__ = ["gram_alignment"]


class _GramAlignment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: list[int], right: list[int], options: Options, *grams: Tensor
    ) -> tuple[Tensor, Tensor]:
        stack = torch.stack([k.to(result_dtype(grams)) for k in grams])
        if options.function == "linear":
            saved = _centered(stack, options.centering)
            centered, stats = saved
        else:
            f = dissimilarity(options.function, options.parameters)
            centered = torch.empty_like(stack)
            stats, state = similarities(
                stack, f, lambda d, _: f.state(d, (), False), options.centering, 1, out=centered
            )
            saved = [stack, centered, stats, state]
        values, degenerate, *_ = backend_of(stack.device).align(centered, stats, left, right, 1)
        ctx.arguments = left, right, options
        ctx.save_for_backward(values, degenerate, *grams, *saved)
        ctx.grams = len(grams)
        ctx.mark_non_differentiable(degenerate)
        return values.to(stack.dtype, copy=True), degenerate

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        values, degenerate, *rest = ctx.saved_tensors
        grams, saved = rest[: ctx.grams], rest[ctx.grams :]
        left, right, options = ctx.arguments
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        arguments = grad, values, degenerate, saved
        with torch.no_grad():
            if options.function == "linear":
                forward = Alignment(values, degenerate, *saved)
                backend = backend_of(grad.device)
                parts = [(wanted, backend.coefficients(grad, forward, left, right, wanted, 1))]
            else:
                f = dissimilarity(options.function, options.parameters)
                parts = [
                    (some, b) for some, b, _ in laplacians(*arguments, f, left, right, wanted, 1)
                ]
            # <B, dK> / 2.
            computed = [
                (b / 2).to(grams[w].dtype)
                for some, matrices in parts
                for w, b in zip(some, matrices.unbind(), strict=True)
            ]
        return (None, None, None, *by_input(computed, wanted, grad, grams))


def _centered(grams: Tensor, centering: str) -> list[Tensor]:
    """K° of each matrix, and what :attr:`Alignment.stats` has of it."""
    stats_shape = backend_of(grams.device).stats_shape(len(grams), grams.size(1))
    stats = grams.new_zeros(stats_shape, dtype=torch.float64)
    centered = torch.empty_like(grams)
    for i, k in enumerate(grams.split(1)):
        s = k.double() if k.dtype != torch.float64 else k.clone()
        stats[i].view(-1, 2)[0] = torch.cat(center_(s, centering))
        centered[i] = s[0]
    return [centered, stats]


def gram_alignment(
    grams: Sequence[Tensor], pairs: Sequence[tuple[int, int]], options: Options
) -> tuple[Tensor, Tensor]:
    """Alignments of pairs of layers and which have a degenerate one, (P,) each.

    Parameters
    ----------
    grams : sequence of Tensor, each (n, n)
        Symmetric H-centred Gram matrices, float64 or float32, on one device; differentiable once.
        Gradients are symmetric.
    pairs : sequence of (int, int)
        Indices into `grams`.
    options : Options
        Its function is "linear" (CKA), "rbf" or "euclidean".
    """
    if not pairs:
        empty = torch.zeros(0, dtype=result_dtype(grams), device=grams[0].device)
        return empty, empty.bool()
    if not has_native_backend(grams[0].device):
        return reference.gram_alignment(grams, *options, pairs=pairs)
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    values, degenerate = _GramAlignment.apply(left, right, options, *grams)
    return values, degenerate
