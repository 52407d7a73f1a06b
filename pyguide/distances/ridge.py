"""1 - the score of a ridge regression."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from pyguide.distances.base import PairedDistance, variant
from pyguide.distances.costs import (
    IN_DOUBLE,
    PairCost,
    PlannedLayers,
    Work,
    features,
    pair_costs,
)
from pyguide.ops.inputs import positive_number, real_number
from pyguide.ops.paired_layers import PairedLayers
from pyguide.ops.random_projection import (
    johnson_lindenstrauss_dimension,
    random_projection,
    terms_of_column,
)
from pyguide.ops.ridge import ridge_scores
from pyguide.ops.routes import multiply_adds

__all__ = ["Ridge"]


class Ridge(PairedDistance):
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

    Raises
    ------
    ValueError
        If `penalty` is not positive and finite, `projection` not in (0, 1) or `seed` negative;
        in a call with fewer than 4 samples.
    TypeError
        If one of them is no number.

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

    min_samples = 4

    def __init__(
        self, penalty: float = 10.0, *, projection: float | None = 0.1, seed: int = 0
    ) -> None:
        if projection is not None and not 0 < real_number("projection", projection) < 1:
            raise ValueError(f"projection must be None or in (0, 1), got {projection}")
        if not 0 <= operator.index(seed) < 1 << 63:
            raise ValueError(f"seed must be in [0, 2^63), got {seed}")
        self.penalty = positive_number("penalty", penalty)
        self.projection = None if projection is None else float(projection)
        self.seed = operator.index(seed)
        self.name = variant(
            "ridge",
            penalty=(self.penalty, 10.0),
            projection=(self.projection, 0.1),
            seed=(self.seed, 0),
        )

    def __repr__(self) -> str:
        return f"Ridge(penalty={self.penalty}, projection={self.projection}, seed={self.seed})"

    def samples_of_origin(self, n: int) -> int:
        return n // 2

    def _compare(self, pairs: PairedLayers) -> tuple[Tensor, Tensor]:
        projected = [self._projected(x) for x in pairs.layers]
        scores, flags = ridge_scores(pairs._replace(layers=projected), self.penalty)
        return 1 - scores, flags

    def _dimension(self, x: Tensor) -> int | None:
        """How many features the layer is projected to; None if it stays as it is."""
        if self.projection is None:
            return None
        dimension = johnson_lindenstrauss_dimension(x.size(0), self.projection)
        return dimension if features(x) > dimension else None

    def _projected(self, x: Tensor) -> Tensor:
        dimension = self._dimension(x)
        return x if dimension is None else random_projection(x, dimension, self.seed)

    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        return pair_costs(
            planned,
            self._gram_work,
            _score_work,
            of_left=_predictor_work,
            of_right=lambda y: _response_work(y, planned.differentiable),
        )

    def _gram_work(self, x: Tensor) -> Work:
        dimension = self._dimension(x)
        if dimension is None:
            return Work(*multiply_adds([x.double()], [], False, False))
        n = x.size(0)
        projected = x.new_empty((n, dimension), dtype=torch.float64)
        projected.requires_grad_(x.requires_grad)
        forward, backward = multiply_adds([projected], [], False, False)
        work = IN_DOUBLE * n * dimension * terms_of_column(features(x))
        wanted = int(x.requires_grad)
        return Work(forward + work, backward + work * wanted, projected.nbytes * wanted)


def _halves(x: Tensor) -> tuple[int, int]:
    """How many samples fit and how many are scored."""
    return x.size(0) // 2, x.size(0) - x.size(0) // 2


def _predictor_work(x: Tensor) -> Work:
    """A Cholesky factor of m^3 / 6 multiply-adds and two triangular solves of m^2 (n - m) / 2.

    Backward the solves again and one product with their result, then two products and two solves
    of m x m.
    """
    m, scored = _halves(x)
    wanted = int(x.requires_grad)
    forward = IN_DOUBLE * m**3 // 6 + IN_DOUBLE * m**2 * scored
    backward = IN_DOUBLE * (2 * m**2 * scored + 3 * m**3)
    # The factor; the right side of the solves, their solution and the smoother.
    return Work(forward, backward * wanted, (m**2 + 3 * m * scored) * 8 * wanted)


def _response_work(y: Tensor, differentiable: bool) -> Work:
    """No work beside the Gram matrix, whose blocks are kept."""
    m, scored = _halves(y)
    return Work(kept=(m**2 + m * scored) * 8 * differentiable)


def _score_work(x: Tensor, y: Tensor) -> Work:
    """W L_fit, and its gradients."""
    m, scored = _halves(x)
    product = IN_DOUBLE * scored * m**2
    wanted = x.requires_grad + y.requires_grad
    return Work(product, product * wanted, scored * m * 8 * bool(wanted))
