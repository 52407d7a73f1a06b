"""The orthogonal Procrustes distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.base import FlaggedDistance
from pyguide.ops.paired_layers import PairedLayers, paired_layers
from pyguide.ops.procrustes import factors, squared_distance

__all__ = ["Procrustes", "normalized_procrustes"]


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


class Procrustes(FlaggedDistance):
    """The squared orthogonal Procrustes distance of layers scaled to unit norm.

    With X and Y centred over the samples and ``||.||_*`` the nuclear norm::

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

    name = "procrustes"

    def __init__(self, *, normalized: bool = True) -> None:
        self.normalized = normalized

    def __repr__(self) -> str:
        return f"Procrustes(normalized={self.normalized})"

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        found = paired_layers(xs, ys, pairs, per_token=per_token, min_samples=self.min_samples)
        if self.normalized:
            return found.results(*normalized_procrustes(found))
        return found.results(_squared_distances(found, factors(found.layers)), None)
