"""The orthogonal Procrustes distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.base import Distance
from pyguide.ops.paired_grams import PairedGrams, paired_grams
from pyguide.ops.procrustes import squared_distances

__all__ = ["Procrustes", "normalized_procrustes"]


def normalized_procrustes(pairs: PairedGrams) -> tuple[Tensor, Tensor]:
    """Squared distances, float64, of layers scaled to unit norm; and degenerate flags.

    A pair with a degenerate layer is at 2, the distance of layers without common signal, and
    has no gradient.
    """
    traces = pairs.grams.diagonal(dim1=1, dim2=2).sum(dim=1)
    constant = traces == 0
    unit = pairs.grams / torch.where(constant, 1.0, traces)[:, None, None]
    values = squared_distances(unit, pairs.left, pairs.right, pairs.wanted)
    flags = pairs.either(constant) & ~values.detach().isnan()
    return torch.where(flags, 2.0, values), flags


class Procrustes(Distance):
    """The squared orthogonal Procrustes distance of layers scaled to unit norm.

    With X and Y centred over the samples and ``||.||_*`` the nuclear norm::

        d = min_Q || X/||X|| - Y/||Y|| Q ||^2 = 2 (1 - ||X^T Y||_* / (||X|| ||Y||))

    over orthogonal Q (of layers of different width, the narrower is padded with zeros). It is
    in [0, 2]; Ding et al. 2021 use it to compare networks. ``1 - d/2`` is the normalized Bures
    similarity (Harvey, Lipshutz & Williams 2023).

    Everything is computed in float64 from the n x n Gram matrices, each distinct layer's once;
    a pair costs one singular value decomposition of n x n, and on a GPU waits for it.
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
    for layers of any rank.

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

    def __call__(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        return self.values_and_flags(xs, ys, pairs=pairs)[0]

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        found = paired_grams(xs, ys, pairs, per_token=per_token, min_samples=self.min_samples)
        if self.normalized:
            return found.results(*normalized_procrustes(found))
        values = squared_distances(found.grams, found.left, found.right, found.wanted)
        return found.results(values, None)
