"""The orthogonal Procrustes distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.base import PairedDistance, variant
from pyguide.distances.costs import (
    IN_DOUBLE,
    PairCost,
    PlannedLayers,
    Work,
    eigh_work,
    features,
    pair_costs,
    svd_work,
)
from pyguide.ops.paired_layers import PairedLayers
from pyguide.ops.procrustes import factors, squared_distance
from pyguide.ops.routes import multiply_adds

__all__ = ["Procrustes", "normalized_procrustes", "procrustes_costs"]


def normalized_procrustes(pairs: PairedLayers) -> tuple[Tensor, Tensor]:
    """Squared distances, float64, of layers scaled to unit norm; and degenerate flags.

    A pair with a degenerate layer is at 2, the distance of layers without common signal, and
    has no gradient.
    """
    found = factors(pairs.layers)
    squares = [f.square().sum() for f in found]
    # Beyond the range of float64 no unit norm is left.
    squares = [torch.where(square.isinf(), torch.nan, square) for square in squares]
    constant = [square == 0 for square in squares]
    units = [
        f * torch.where(flag, 1.0, square).rsqrt()
        for f, square, flag in zip(found, squares, constant, strict=True)
    ]
    values = _squared_distances(pairs, units)
    flags = pairs.either(constant) & ~values.detach().isnan()
    return torch.where(flags, 2.0, values), flags


def _squared_distances(pairs: PairedLayers, found: Sequence[Tensor]) -> Tensor:
    of_pairs = zip(pairs.left, pairs.right, strict=True)
    return pairs.stack([squared_distance(found[i], found[j]) for i, j in of_pairs], torch.float64)


def procrustes_costs(planned: PlannedLayers, normalized: bool) -> list[PairCost]:
    """Of each layer a factor, of each pair a singular value decomposition, all in float64."""
    return pair_costs(
        planned,
        lambda x: _factor_work(x, normalized, planned.differentiable),
        _pair_work,
        route=lambda x, y: "sample" if _is_wide(x) or _is_wide(y) else "feature",
    )


def _is_wide(x: Tensor) -> bool:
    """Whether the layer's factor is that of its Gram matrix, not the layer."""
    return features(x) > x.size(0)


def _rank(x: Tensor) -> int:
    """Columns of a layer's factor."""
    return min(features(x), x.size(0))


def _factor_work(x: Tensor, normalized: bool, differentiable: bool) -> Work:
    n, rank = x.size(0), _rank(x)
    forward = backward = 0
    matrices = int(differentiable)  # of n x rank: the factor that pairs compare
    if normalized and x.requires_grad:
        matrices += 1  # and the factor as it was before it was scaled
    if _is_wide(x):
        forward, backward = multiply_adds([x.double()], [], False, False)
        forward += eigh_work(n)
        if x.requires_grad:
            backward += IN_DOUBLE * 3 * n**3  # three products take a root's gradient to its square
            matrices += 3  # the Gram matrix, its root and the root's inverse
    return Work(forward, backward, matrices * n * rank * 8)


def _pair_work(x: Tensor, y: Tensor) -> Work:
    """``F^T G``, its decomposition, the best map Q and the residual; products with Q backward."""
    rank, other = _rank(x), _rank(y)
    product, rotation = x.size(0) * rank * other, rank * other * min(rank, other)
    wanted = int(x.requires_grad or y.requires_grad)  # the gradient takes a Q of its own
    forward = IN_DOUBLE * (2 * product + (1 + wanted) * rotation) + svd_work(rank, other)
    return Work(forward, IN_DOUBLE * 2 * product * wanted, rank * other * 8 * wanted)


class Procrustes(PairedDistance):
    """The squared orthogonal Procrustes distance of layers scaled to unit norm.

    With X and Y centred over the samples, ``||.||`` the Frobenius and ``||.||_*`` the nuclear
    norm::

        d = min_Q || X/||X|| - Y/||Y|| Q ||^2 = 2 (1 - ||X^T Y||_* / (||X|| ||Y||))

    over orthogonal Q (of layers of different width, the narrower is padded with zeros). It is
    in [0, 2]; Ding et al. 2021 use it to compare networks. ``1 - d/2`` is the normalized Bures
    similarity (Harvey, Lipshutz & Williams 2023).

    Everything is computed in float64. A layer of more than n features is replaced by a factor
    of its n x n Gram matrix, which costs one symmetric eigendecomposition; a pair costs one
    singular value decomposition of at most n x n. On a GPU both wait for the device; a device
    without float64 (MPS) will not do.
    Invariant to orthogonal maps and shifts of either layer, and, if normalized, to their scale.

    Parameters
    ----------
    normalized : bool
        False compares the centred layers as they are:
        ``||X||^2 + ||Y||^2 - 2 ||X^T Y||_*``, which grows with the width and scale of layers.

    Notes
    -----
    Normalized, a pair with a degenerate layer (constant features) is at 2 with gradient 0.
    The gradient in X is that of the formula, ``2 (X - Y Q)`` unless normalized, and finite
    for layers of any rank. Directions along which a layer of more than n features varies by
    less than ``sqrt(n 2^-52)`` of its largest singular value (2.4e-7 at n = 256) are rounding
    and do not turn.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import Procrustes
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> Procrustes()([x, x], [3 * x.flip(1) + 1, x[:, :1]]).round(decimals=4)
    tensor([0.0000, 0.5858])
    >>> Procrustes(normalized=False)([x], [3 * x])
    tensor([16.])
    """

    def __init__(self, *, normalized: bool = True) -> None:
        self.normalized = normalized
        self.name = variant("procrustes", *[] if normalized else ["unnormalized"])

    def __repr__(self) -> str:
        return f"Procrustes(normalized={self.normalized})"

    def _compare(self, pairs: PairedLayers) -> tuple[Tensor, Tensor | None]:
        if self.normalized:
            return normalized_procrustes(pairs)
        return _squared_distances(pairs, factors(pairs.layers)), None

    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        return procrustes_costs(planned, self.normalized)
