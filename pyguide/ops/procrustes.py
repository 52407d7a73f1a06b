"""Squared Procrustes distances of layers, from factors of their Gram matrices.

The distance of centred layers X and Y under the best orthogonal map,
``min_Q ||X - Y Q||^2 = ||X||^2 + ||Y||^2 - 2 ||X^T Y||_*``, depends on ``K = X X^T`` and
``L = Y Y^T`` only: with any factors ``F F^T = K`` and ``G G^T = L``, ``||X^T Y||_* =
||F^T G||_* = tr (K^1/2 L K^1/2)^1/2``. So no factor needs to be wider than n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.double_grams import double_grams
from pyguide.ops.first_derivative import first_derivative_only, needs_gradient

__all__ = ["factors", "squared_distance"]


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """F with ``F F^T = K``, and its pseudo-inverse, without eigenvalues that are rounding."""
    finite = gram.isfinite().all()
    # LAPACK raises for a NaN.
    eigenvalues, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0))
    kept = eigenvalues > gram.size(0) * torch.finfo(gram.dtype).eps * eigenvalues[-1]
    f = vectors * torch.where(kept, eigenvalues, 0.0).sqrt()
    inverse = (vectors * torch.where(kept, eigenvalues, torch.inf).rsqrt()).mT
    return torch.where(finite, f, torch.nan), inverse


class _Root(torch.autograd.Function):
    """:func:`_root`, for what does not depend on which of the factors F is.

    Autograd through eigenvectors would divide by differences of eigenvalues, which may be 0.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor) -> Tensor:
        f, inverse = _root(gram)
        ctx.save_for_backward(gram, f, inverse)
        return f.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gram, f, inverse = ctx.saved_tensors
        # The gradient in X is T X. T is symmetric within the range of X; what leads out of it
        # is mirrored, which changes no product with X.
        t = grad @ inverse
        of_gram = (t + t.mT - f @ (inverse @ t)) / 2
        return first_derivative_only([of_gram], grad, gram)[0]


def factors(layers: Sequence[Tensor]) -> list[Tensor]:
    """A factor of each layer's centred Gram matrix, (n, r) float64 with r <= n.

    Differentiable once, through functions that are the same for all factors. The layers were
    checked.
    """
    found: dict[int, Tensor] = {}
    wide = [i for i, x in enumerate(layers) if x.numel() > x.size(0) ** 2]
    for i, gram in zip(wide, double_grams([layers[i] for i in wide]), strict=True):
        needed = needs_gradient([gram])
        found[i] = _Root.apply(gram) if needed else _root(gram)[0]
    for i, x in enumerate(layers):
        if i not in found:
            found[i] = reference.center_features(x.double().reshape(x.size(0), -1))
    return [found[i] for i in range(len(layers))]


def _compare(f: Tensor, g: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The squared distance, and ``P, S, R^T`` of ``F^T G = P S R^T``."""
    product = f.mT @ g
    finite = product.isfinite().all()
    p, s, r = torch.linalg.svd(torch.where(finite, product, 0.0), full_matrices=False)
    q = p @ r
    # Not the difference of the norms: of close layers it keeps half the digits of the distance.
    residual = g - f @ q if f.size(1) <= g.size(1) else f - g @ q.mT
    return torch.where(finite, residual.square().sum(), torch.nan), (p, s, r)


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, g: Tensor) -> Tensor:
        distance, (p, s, r) = _compare(f, g)
        # Directions of one layer that the other has not could turn anywhere: they do not turn.
        norms = torch.linalg.vector_norm(f) * torch.linalg.vector_norm(g)
        q = (p * (s > f.size(0) * torch.finfo(s.dtype).eps * norms)) @ r
        ctx.save_for_backward(distance, f, g, q)
        return distance.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        distance, f, g, q = ctx.saved_tensors
        weight = 2 * torch.where(distance.isnan(), torch.nan, grad)
        return tuple(
            first_derivative_only([weight * (f - g @ q.mT), weight * (g - f @ q)], grad, f, g)
        )


def squared_distance(f: Tensor, g: Tensor) -> Tensor:
    """``min_Q ||F - G Q||^2 = ||F||^2 + ||G||^2 - 2 ||F^T G||_*``, a scalar.

    Over partial isometries Q. Differentiable once, at matrices of any rank: the gradient in F is
    ``2 (F - G Q^T)``. Where F and G have nothing in common, Q is zero. torch reads on the
    host whether its decomposition converged, so a GPU is waited for.
    """
    if needs_gradient([f, g]):
        g = g.view_as(g) if g is f else g  # Dynamo takes no tensor twice
        result: Tensor = _SquaredDistance.apply(f, g)
        return result
    return _compare(f, g)[0]  # see align in pyguide/ops/cka_operators.py
