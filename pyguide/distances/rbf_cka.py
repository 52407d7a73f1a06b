"""1 - CKA with a Gaussian kernel."""

from __future__ import annotations

from pyguide.distances.alignment import DissimilarityAlignment
from pyguide.distances.base import variant
from pyguide.ops.inputs import positive_number
from pyguide.ops.pairwise import Options

__all__ = ["RBFCKA"]


class RBFCKA(DissimilarityAlignment):
    """CKA with a Gaussian (RBF) kernel as a distance, ``1 - CKA`` (Kornblith et al. 2019).

    ``CKA = <K°, L°> / (||K°|| ||L°||)`` with ``K_ij = exp(-||x_i - x_j||^2 / (2 sigma^2))``, L
    likewise; ``°`` is H-centring or, for the debiased estimator (Song et al. 2012), U-centring.
    By the median rule ``sigma^2`` is `multiple`^2 times the median of a layer's squared
    distances, as in that paper's code: of all n^2 of them, those of a sample to itself included.
    The kernel then looks at neighbourhoods, small ones for a small `multiple`; as it grows, the
    value goes to that of linear CKA.

    Squared distances come from the centred linear Gram matrix, which each distinct layer gets
    once, however many pairs use the layer.

    Parameters
    ----------
    multiple : float
        sigma in square roots of the median squared distance.
    bandwidth : float, optional
        sigma itself, the same for every layer, in the units of the features: no median rule.
    debiased : bool
        Use the debiased estimator, which needs n >= 4 and lies in [-1, 1].
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features, see :func:`pyguide.cka_pairs`.

    Raises
    ------
    ValueError
        If `multiple` or `bandwidth` is not positive and finite, or both are given; for another
        `precision`; in a call with fewer than 2 samples (debiased 4).
    TypeError
        If `multiple` or `bandwidth` is no number.

    Notes
    -----
    Gradients are those of a fixed sigma: the median moves with one or two pairs of samples only,
    and its gradient would be noise on them. Distances below the rounding of the Gram matrix are
    0. Of float32 features others lose digits where some samples lie very far away: with one of
    40 at 1e4 standard deviations the value was 2e-4 off, at 1e6 wrong; use float64 there. Where
    more than half of the squared distances are 0, the kernel is 1 for equal samples and 0 for
    others, without gradient. A pair with a degenerate layer (equal samples, or a debiased
    kernel matrix that is constant off the diagonal) has CKA 0, so distance 1, and gradient 0.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import RBFCKA
    >>> x = torch.randn(64, 10)
    >>> y = torch.cat([x, torch.randn(64, 2)], dim=1)
    >>> RBFCKA()([x], [3 * x + 1]).round(decimals=4).abs()
    tensor([0.])
    >>> bool(RBFCKA(multiple=0.5, debiased=True)([x], [y]) < 0.5)
    True
    """

    def __init__(
        self,
        *,
        multiple: float = 1.0,
        bandwidth: float | None = None,
        debiased: bool = False,
        precision: str | None = None,
    ) -> None:
        super().__init__(precision)
        if bandwidth is not None and multiple != 1.0:
            raise ValueError("give multiple (of the median rule) or bandwidth, not both")
        self.multiple = positive_number("multiple", multiple)
        self.bandwidth = None if bandwidth is None else positive_number("bandwidth", bandwidth)
        self.debiased = debiased
        self.name = variant(
            "debiased_rbf_cka" if debiased else "rbf_cka",
            multiple=(self.multiple, 1.0),
            bandwidth=(self.bandwidth, None),
        )
        self.min_samples = 4 if debiased else 2

    def __repr__(self) -> str:
        sigma = f"multiple={self.multiple}" if not self.bandwidth else f"bandwidth={self.bandwidth}"
        precision = f", precision={self.precision!r}" if self.precision else ""
        return f"RBFCKA({sigma}, debiased={self.debiased}{precision})"

    @property
    def _options(self) -> Options:
        return Options("rbf", (self.multiple, self.bandwidth or 0.0), "u" if self.debiased else "h")
