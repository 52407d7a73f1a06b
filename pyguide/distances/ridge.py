"""1 - the score of a ridge regression."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from torch import Tensor

from pyguide.distances.base import FlaggedDistance
from pyguide.ops.paired_layers import paired_layers
from pyguide.ops.random_projection import johnson_lindenstrauss_dimension, random_projection
from pyguide.ops.ridge import ridge_scores

__all__ = ["Ridge"]


class Ridge(FlaggedDistance):
    """How badly ridge regression predicts the second layer from the first, ``1 - score``.

    The first half of the batch (``m = n // 2`` samples) fits a linear map with intercept, and
    the rest is scored: with x and y centred by the mean of the samples that fit::

        B     = argmin_B ||Y_fit - X_fit B||^2 + penalty ||B||^2
        score = mean over scored i of cos(x_i B, y_i)

    It is in [-1, 1], so the distance is in [0, 2]. Not symmetric: the first layer, in guidance
    the target's, predicts the second. It depends on the order of the samples, so shuffle.

    This is the ridge distance of the guidance paper's ablation: layers of more features than
    the Johnson-Lindenstrauss dimension ``k = ceil(4 ln n / (eps^2/2 - eps^3/3))`` (Dasgupta &
    Gupta 2003; 4754 at n = 256) are projected to k features by a very sparse random matrix
    (Li, Hastie & Church 2006), the halves are as above, and the penalty was 10 for trained
    and 100 for untrained guides.

    Everything is computed in float64 from n x n Gram matrices, by ``W = K_scored,fit (K_fit +
    penalty I)^-1`` with ``x_i B = (W Y_fit)_i``, each distinct layer's matrix and
    factorisation once. A device without float64 (MPS) will not do.

    Parameters
    ----------
    penalty : float
        Added to the eigenvalues of ``X_fit X_fit^T``, which grow with the features' number and
        variance: a layer with twice the scale is penalised a fourth as much.
    projection : float or None
        eps, in (0, 1): how far the projection may stretch squared distances. None compares the
        features themselves, what projections give in expectation of the Gram matrix: without
        noise, and on CPUs faster.
    seed : int
        Of the random projections; layers of one width share theirs.

    Notes
    -----
    A pair with a layer that is constant over the samples that fit is degenerate: its score is 0, so
    its distance 1, and its gradient 0. A sample that is scored but lies at the mean of those
    that fit counts with cosine 0 and has no gradient. A penalty that is lost in the rounding of
    the eigenvalues of a singular ``X_fit X_fit^T`` gives NaN, or before that an inaccurate
    score. ``torch.compile`` compiles again for every batch size at which a layer is projected.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import Ridge
    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> y = x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 5
    >>> Ridge(penalty=1e-6)([x, y], [y, x]).round(decimals=4)
    tensor([0., 0.])
    >>> Ridge(penalty=10.0)([x], [y]).round(decimals=4)
    tensor([0.1440])
    """

    name = "ridge"
    min_samples = 4

    def __init__(
        self, penalty: float = 10.0, *, projection: float | None = 0.1, seed: int = 0
    ) -> None:
        if not 0 < penalty < math.inf:
            raise ValueError(f"penalty must be positive and finite, got {penalty}")
        if projection is not None and not 0 < projection < 1:
            raise ValueError(f"projection must be None or in (0, 1), got {projection}")
        self.penalty = penalty
        self.projection = projection
        self.seed = operator.index(seed)

    def __repr__(self) -> str:
        return f"Ridge(penalty={self.penalty}, projection={self.projection}, seed={self.seed})"

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        found = paired_layers(xs, ys, pairs, per_token=per_token, min_samples=self.min_samples)
        if self.projection is not None:
            found = found._replace(layers=[self._projected(x) for x in found.layers])
        scores, flags = ridge_scores(found, self.penalty)
        return found.results(1 - scores, flags)

    def _projected(self, x: Tensor) -> Tensor:
        assert self.projection is not None
        n = x.size(0)
        features = johnson_lindenstrauss_dimension(n, self.projection)
        return random_projection(x, features, self.seed) if x.numel() > n * features else x
