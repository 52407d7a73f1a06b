"""1 - linear CKA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.base import FlaggedDistance
from pyguide.ops import cka_pairs_and_flags
from pyguide.ops.inputs import check_precision

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
        quiet = self.debiased or self._warned or torch.compiler.is_compiling()
        if not quiet and xs and xs[0].size(0) < _FEW_SAMPLES:
            self._warned = True
            warnings.warn(
                f"biased CKA of {xs[0].shape[0]} samples is close to 1 whatever the layers "
                "(0.97 for independent 512-dimensional features at n = 16): use larger "
                "batches or the debiased estimator",
                stacklevel=3,
            )
        return 1 - cka, degenerate
