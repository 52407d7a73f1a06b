"""1 - linear CKA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyguide.distances.base import FlaggedDistance
from pyguide.distances.costs import PairCost, PlannedLayers
from pyguide.ops import cka_pairs_and_flags, feature_space, sample_space
from pyguide.ops.contract import result_dtype
from pyguide.ops.gram_alignment import gram_alignment
from pyguide.ops.inputs import check_precision
from pyguide.ops.pairwise import Options
from pyguide.ops.routes import Part, multiply_adds, split_by_route

__all__ = ["LinearCKA"]

_FEW_SAMPLES = 32


class LinearCKA(FlaggedDistance):
    """Linear centred kernel alignment as a distance, ``1 - CKA``.

    ``CKA = <K°, L°> / (||K°|| ||L°||)`` with ``K = X Xᵀ``, ``L = Y Yᵀ``; ``°`` is
    H-centring (biased, Kornblith et al. 2019) or U-centring (debiased, Song et al.
    2012). Each distinct layer's Gram matrix is computed once, however many pairs
    use the layer.

    Parameters
    ----------
    debiased : bool
        Use the debiased estimator, which needs n >= 4 and lies in [-1, 1].
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features, see :func:`pyguide.cka_pairs`.

    Raises
    ------
    ValueError
        For another `precision`; in a call with fewer than 2 samples (debiased 4).

    Notes
    -----
    The biased CKA of *unrelated* layers is not 0: of independent d-dimensional Gaussian
    features it is about d / (n + d), for d = 512 that is 0.97, 0.89, 0.67 and 0.33 at
    n = 16, 64, 256 and 1024. A call with n < 32 warns once, if it is not
    compiled.

    A pair with a degenerate layer (constant features, say) has CKA 0, so distance 1,
    and gradient 0 in both layers.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import LinearCKA
    >>> x, y = torch.randn(64, 10), torch.randn(64, 3, 4)
    >>> LinearCKA()([x, y], [x, 2 * y + 1]).round(decimals=4).abs()
    tensor([0., 0.])
    >>> LinearCKA(debiased=True)([x], [x, y], pairs=[(0, 0), (0, 1)]).shape
    torch.Size([2])
    """

    of_grams = True

    def __init__(self, *, debiased: bool = False, precision: str | None = None) -> None:
        check_precision(precision)
        self.debiased = debiased
        self.precision = precision
        self.name = "debiased_cka" if debiased else "cka"
        self.min_samples = 4 if debiased else 2
        self._warned = False

    def __repr__(self) -> str:
        precision = f", precision={self.precision!r}" if self.precision else ""
        return f"LinearCKA(debiased={self.debiased}{precision})"

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor]:
        cka, degenerate = cka_pairs_and_flags(
            xs,
            ys,
            pairs=pairs,
            debiased=self.debiased,
            per_token=per_token,
            precision=self.precision,
        )
        if xs:
            self._warn_of_few_samples(xs[0].size(0))
        return 1 - cka, degenerate

    def from_grams(
        self, grams: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        options = Options("linear", (), "u" if self.debiased else "h")
        cka, degenerate = gram_alignment(grams, pairs, options)
        self._warn_of_few_samples(grams[0].size(0))
        return 1 - cka, degenerate

    def _warn_of_few_samples(self, n: int) -> None:
        quiet = self.debiased or self._warned or torch.compiler.is_compiling()
        if not quiet and n < _FEW_SAMPLES:
            self._warned = True
            warnings.warn(
                f"biased CKA of {n} samples is close to 1 whatever the layers "
                "(0.97 for independent 512-dimensional features at n = 16): use larger "
                "batches or the debiased estimator",
                stacklevel=4,
            )

    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        costs: dict[int, PairCost] = {}
        if planned.pairs:
            for part in split_by_route(planned.layers, planned.pairs, "auto", self.debiased):
                layers = [planned.layers[i] for i in part.layers]
                of_part = _part_costs(part, layers, self.debiased, planned.tokens)
                costs |= zip(part.positions, of_part, strict=True)
        return [costs[p] for p in range(len(planned.pairs))]


def _part_costs(
    part: Part, layers: list[Tensor], debiased: bool, tokens: int
) -> Iterator[PairCost]:
    """What each pair adds to the cost of those before it."""
    route = feature_space if part.in_feature_space else sample_space
    dtype = result_dtype(layers)
    before = (0, 0, 0, 0)
    for count in range(1, len(part.pairs) + 1):
        used = list(dict.fromkeys(i for pair in part.pairs[:count] for i in pair))
        some = [layers[i] for i in used]
        pairs = [(used.index(i), used.index(j)) for i, j in part.pairs[:count]]
        left, right = (list(side) for side in zip(*pairs, strict=True))
        # In the type of all layers' results, whatever the first ones' would be; on the CPU, where
        # memory that is not written costs nothing, since a plan needs no device's backend.
        shapes = [torch.empty_like(x, dtype=dtype, device="cpu") for x in some]
        saved = sum(x.nbytes for x in route.fake_saved(shapes, left, right, False))
        workspace = route.workspace_bytes(some, dtype, debiased)
        after = (*multiply_adds(some, pairs, debiased, part.in_feature_space), saved, workspace)
        new = (tokens * (a - b) for a, b in zip(after, before, strict=True))
        yield PairCost("feature" if part.in_feature_space else "sample", *new)
        before = after
