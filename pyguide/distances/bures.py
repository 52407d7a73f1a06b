"""The angular shape distance."""

from __future__ import annotations

import torch
from torch import Tensor

from pyguide.distances.base import PairedDistance
from pyguide.distances.costs import PairCost, PlannedLayers
from pyguide.distances.procrustes import normalized_procrustes, procrustes_costs
from pyguide.ops.paired_layers import PairedLayers

__all__ = ["Bures"]


class Bures(PairedDistance):
    """The angle between layers under the best orthogonal map, in radians.

    The arc cosine of the normalized Bures similarity (Harvey, Lipshutz & Williams 2023),
    which is the angular shape distance of Williams et al. 2021. With X and Y centred over
    the samples and ``||.||_*`` the nuclear norm::

        d = arccos(||X^T Y||_* / (||X|| ||Y||)) = 2 arcsin(sqrt(p) / 2)

    where p is the normalized :class:`Procrustes` distance, the squared chord of that angle. It
    is in [0, pi/2], and a metric: symmetric, 0 only for layers that an orthogonal map, a shift
    and a scale carry into each other, and no longer than any way round by a third layer.

    Cost and invariances are those of :class:`Procrustes`.

    Notes
    -----
    The angle is computed from the chord, which is a residual and keeps its digits for close
    layers, where the similarity is 1 to the last digit.

    The angle has no derivative at 0. There, and up to 1.5e-8 (the root of float64's
    precision), the gradient is 0. A pair with a degenerate layer (constant features) is at
    pi/2 with gradient 0.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import Bures
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> Bures()([x, x], [3 * x.flip(1) + 1, x[:, :1]]).rad2deg().round(decimals=4)
    tensor([ 0., 45.])
    """

    name = "bures"

    def __repr__(self) -> str:
        return "Bures()"

    def _compare(self, pairs: PairedLayers) -> tuple[Tensor, Tensor]:
        squared_chords, flags = normalized_procrustes(pairs)
        return _angles(squared_chords), flags

    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        return procrustes_costs(planned, normalized=True)


def _angles(squared_chords: Tensor) -> Tensor:
    """``2 arcsin(chord / 2)``, without gradient where rounding decides its direction."""
    at_zero = squared_chords <= torch.finfo(squared_chords.dtype).eps
    chords = torch.where(at_zero, 1.0, squared_chords).sqrt()
    chords = torch.where(at_zero, squared_chords.detach().sqrt(), chords)
    return 2 * (chords / 2).asin()
