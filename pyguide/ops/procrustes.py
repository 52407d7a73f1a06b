"""Squared Procrustes distances of layers, from their Gram matrices.

The distance of centred layers X and Y under the best orthogonal map,
``min_Q ||X - Y Q||^2 = ||X||^2 + ||Y||^2 - 2 ||X^T Y||_*``, depends on ``K = X X^T`` and
``L = Y Y^T`` only: with any factors ``F F^T = K`` and ``G G^T = L``, ``||X^T Y||_* =
||F^T G||_*``, which is ``tr (K^1/2 L K^1/2)^1/2``. Factors are n x n however wide the layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyguide.ops.first_derivative import first_derivative_only

__all__ = ["squared_distances"]


class _Factors(NamedTuple):
    """``K = F F^T`` of each of L matrices; eigenvalues that are rounding are left out."""

    f: Tensor  # (L, n, n)
    inverse: Tensor  # (L, n, n), F^+
    largest: Tensor  # (L,), the largest singular value of F
    finite: Tensor  # (L,) bool; F is zero where K has a NaN or an infinity


def _factors(grams: Tensor) -> _Factors:
    finite = grams.isfinite().flatten(1).all(dim=1)
    # LAPACK raises for a NaN.
    grams = torch.where(finite[:, None, None], grams, 0.0)
    eigenvalues, vectors = torch.linalg.eigh(grams)
    rounding = _rounding(grams) * eigenvalues[:, -1:]
    kept = eigenvalues > rounding
    roots = torch.where(kept, eigenvalues, 0.0).sqrt()[:, None, :]
    inverse_roots = torch.where(kept, eigenvalues, torch.inf).rsqrt()[:, None, :]
    return _Factors(vectors * roots, (vectors * inverse_roots).mT, roots[:, 0, -1], finite)


def _rounding(matrices: Tensor) -> float:
    """What is lost of eigenvalues and singular values, relative to the largest."""
    return matrices.size(-1) * torch.finfo(matrices.dtype).eps


def _compare(
    factors: _Factors, left: list[int], right: list[int], with_gradient: bool
) -> tuple[Tensor, list[Tensor]]:
    """Squared distances (P,), and the partial isometry ``P R^T`` of each ``F^T G = P S R^T``."""
    values, isometries = [], []
    for i, j in zip(left, right, strict=True):
        f, g = factors.f[i], factors.f[j]
        p, s, r = torch.linalg.svd(f.mT @ g)
        # Not the difference of the norms, whose root keeps half the digits of close layers.
        distance = (f - g @ (p @ r).mT).square().sum()
        finite = factors.finite[i] & factors.finite[j]
        values.append(torch.where(finite, distance, torch.nan))
        if with_gradient:
            # Directions that one layer has and the other has not.
            kept = s > _rounding(f) * factors.largest[i] * factors.largest[j]
            isometries.append((p * kept) @ r)
    return torch.stack(values), isometries


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grams: Tensor, left: list[int], right: list[int], wanted: list[bool]
    ) -> Tensor:
        factors = _factors(grams)
        values, isometries = _compare(factors, left, right, True)
        ctx.pairs = left, right
        ctx.wanted = wanted
        ctx.save_for_backward(grams, values, factors.f, factors.inverse, *isometries)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grams, values, f, inverse, *isometries = ctx.saved_tensors
        weights = torch.where(values.isnan(), torch.nan, grad).unbind()
        identity = torch.eye(grams.size(1), dtype=grams.dtype, device=grams.device)
        totals = [torch.zeros_like(identity) for _ in ctx.wanted]
        images = [torch.zeros_like(identity) for _ in ctx.wanted]
        for weight, isometry, i, j in zip(weights, isometries, *ctx.pairs, strict=True):
            if ctx.wanted[i]:
                totals[i] = totals[i] + weight * identity
                images[i] = images[i] + weight * (f[j] @ isometry.mT)
            if ctx.wanted[j]:
                totals[j] = totals[j] + weight * identity
                images[j] = images[j] + weight * (f[i] @ isometry)
        grads = torch.stack(
            [
                total - _symmetric_map(image, f[i], inverse[i]) if ctx.wanted[i] else total
                for i, (total, image) in enumerate(zip(totals, images, strict=True))
            ]
        )
        (grads,) = first_derivative_only([grads], grad, grams)
        return grads, None, None, None


def _symmetric_map(image: Tensor, f: Tensor, inverse: Tensor) -> Tensor:
    """The symmetric T with ``T F = image`` on the range of F.

    ``image F^+`` is symmetric within that range. What leads out of it is mirrored, which
    changes no product with F.
    """
    t = image @ inverse
    return t + t.mT - f @ (inverse @ t)


def squared_distances(
    grams: Tensor, left: list[int], right: list[int], wanted: list[bool]
) -> Tensor:
    """``tr K + tr L - 2 ||F^T G||_*`` of pairs of centred Gram matrices, (P,) float64.

    Differentiable once in the matrices (L, n, n) that are ``wanted``: the derivative in K is
    ``I - T``, where T maps X to its image, ``T X = Y Q`` with Y rotated to X. It needs no
    eigenvalue to be simple, and is finite for matrices of any rank. Where X and Y have nothing
    in common in some direction, their distance has no derivative along it; that part is 0.

    Memory is n x n a layer, and for the gradient n x n a pair. torch reads on the host whether
    its decompositions converged, so a GPU is waited for.
    """
    if not left:
        return grams.new_zeros(0)
    if torch.is_grad_enabled() and grams.requires_grad:
        result: Tensor = _SquaredDistances.apply(grams, left, right, wanted)
        return result
    return _compare(_factors(grams), left, right, False)[0]  # see _align in pyguide/ops/cka.py
