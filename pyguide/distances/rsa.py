"""Representational similarity analysis as a distance."""

from __future__ import annotations

from pyguide.distances.alignment import DissimilarityAlignment
from pyguide.distances.base import variant
from pyguide.ops.pairwise import Options

__all__ = ["RSA"]

_RDMS = ("cosine", "euclidean")


class RSA(DissimilarityAlignment):
    """1 - Pearson correlation of dissimilarity matrices (Kriegeskorte, Mur & Bandettini 2008).

    A layer's representational dissimilarity matrix (RDM) has, for every two samples,
    ``1 - cos(x_i, x_j)`` or ``||x_i - x_j||``. Two layers are compared by the correlation of the
    entries off the diagonal,

    ``r = <R°, S°> / (||R°|| ||S°||)``, ``°``: zero the diagonal, subtract the mean of the rest,

    which lies in [-1, 1]. RDMs come from the centred Gram matrix, which each distinct layer gets
    once, however many pairs use the layer. RSA is invariant to orthogonal maps, to isotropic
    scaling and to a joint permutation of the samples; with Euclidean distances also to shifts.

    Parameters
    ----------
    rdm : {"cosine", "euclidean"}
        The dissimilarity of two samples.
    diagonal : bool
        Correlate all n^2 entries, the zeros of the diagonal too, as the ablation of the guidance
        paper does (arXiv 2410.20035). All RDMs share these zeros, which raises the correlation.
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features, see :func:`pyguide.cka_pairs`.

    Raises
    ------
    ValueError
        For another `rdm` or `precision`; in a call with fewer than 3 samples (2 with the
        diagonal).

    Notes
    -----
    Cosines are taken as ``1 - cos = (||x_i - x_j||^2 - (||x_i|| - ||x_j||)^2) / (2 ||x_i||
    ||x_j||)``, which keeps its digits where all samples point in nearly the same direction. A
    sample that is zero has cosine 0 to every other, and no gradient. Distances below the
    rounding of the Gram matrix are 0; the Euclidean distance has gradient 0 there. Of float32
    features others lose digits where some samples lie very far from the rest: cosines of two
    clusters 450 standard deviations apart were 4e-5 off, at 4500 1e-3; use float64 there. A
    pair with a layer whose dissimilarities are all the same, or 0 but for rounding, has
    correlation 0, so distance 1, and gradient 0.

    Examples
    --------
    >>> import torch
    >>> from pyguide.distances import RSA
    >>> x = torch.eye(4)[:3] + 1
    >>> RSA()([x], [torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])])
    tensor([1.])
    >>> a = torch.randn(64, 10)
    >>> RSA("euclidean")([a], [2 * a + 1]).round(decimals=4).abs()
    tensor([0.])
    """

    def __init__(
        self, rdm: str = "cosine", *, diagonal: bool = False, precision: str | None = None
    ) -> None:
        super().__init__(precision)
        if rdm not in _RDMS:
            raise ValueError(f"rdm must be one of {_RDMS}, got {rdm!r}")
        self.rdm = rdm
        self.diagonal = diagonal
        words = [rdm] * (rdm != "cosine") + ["diagonal"] * bool(diagonal)
        self.name = variant("rsa", *words)
        self.min_samples = 2 if diagonal else 3

    def __repr__(self) -> str:
        precision = f", precision={self.precision!r}" if self.precision else ""
        return f"RSA({self.rdm!r}, diagonal={self.diagonal}{precision})"

    def samples_of_origin(self, n: int) -> int:
        # Angles are those at zero; Euclidean distances depend on no origin.
        return 0 if self.rdm == "cosine" else n

    @property
    def _options(self) -> Options:
        return Options(self.rdm, (), "entries" if self.diagonal else "off_diagonal")
