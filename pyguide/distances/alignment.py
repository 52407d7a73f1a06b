"""What RBF CKA and RSA have in common: alignment of functions of the samples' distances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.base import FlaggedDistance
from pyguide.distances.costs import IN_DOUBLE, PairCost, PlannedLayers, Work, pair_costs
from pyguide.ops.contract import result_dtype
from pyguide.ops.dissimilarities import dissimilarity
from pyguide.ops.gram_alignment import gram_alignment
from pyguide.ops.inputs import check_precision
from pyguide.ops.pairwise import Options, fake_saved, pairwise_alignment
from pyguide.ops.routes import multiply_adds

__all__ = ["DissimilarityAlignment"]

# Operations an entry of an n x n matrix, beside those of the function of the distances.
_SQUARED_DISTANCE = 2  # K_ii + K_jj - 2 K_ij
_CENTERING = 4  # the sums of rows, two subtractions and the norm
_COEFFICIENT = 2  # of the other layer's matrix and of its own, for each pair
_LAPLACIAN = 2  # diag(W 1) - W


class DissimilarityAlignment(FlaggedDistance):
    """``1 - <S°, T°> / (||S°|| ||T°||)``, S and T functions of the distances between samples."""

    def __init__(self, precision: str | None) -> None:
        check_precision(precision)
        self.precision = precision

    @property
    @abstractmethod
    def _options(self) -> Options:
        """The function and the centring."""

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor]:
        values, degenerate = pairwise_alignment(
            xs,
            ys,
            self._options,
            pairs=pairs,
            min_samples=self.min_samples,
            per_token=per_token,
            precision=self.precision,
        )
        return 1 - values, degenerate

    @property
    def of_grams(self) -> bool:  # type: ignore[override]
        # Cosines are of the samples' angles at the origin, which centring moves.
        return self._options.function != "cosine"

    def from_grams(
        self, grams: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        if not self.of_grams:
            raise NotImplementedError(f"{self.name!r} is no function of centred Gram matrices")
        values, degenerate = gram_alignment(grams, pairs, self._options)
        return 1 - values, degenerate

    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        dtype = result_dtype(planned.layers)
        return pair_costs(
            planned, lambda x: self._layer_work(x, dtype, planned.differentiable), _pair_work
        )

    def _layer_work(self, x: Tensor, dtype: torch.dtype, differentiable: bool) -> Work:
        function, parameters, _ = self._options
        there, back = dissimilarity(function, parameters).operations
        entries = IN_DOUBLE * x.size(0) ** 2
        forward, backward = multiply_adds([x], [], False, False)
        forward += (_SQUARED_DISTANCE + there + _CENTERING) * entries
        backward += (_SQUARED_DISTANCE + back + _LAPLACIAN) * entries * x.requires_grad
        # On the CPU, where memory that is not written costs nothing.
        shape = torch.empty_like(x, dtype=dtype, device="cpu")
        saved = fake_saved([shape], function, parameters, False) if differentiable else []
        return Work(forward, backward, sum(tensor.nbytes for tensor in saved))


def _pair_work(x: Tensor, y: Tensor) -> Work:
    entries = IN_DOUBLE * x.size(0) ** 2
    return Work(entries, _COEFFICIENT * entries * (x.requires_grad + y.requires_grad))
