"""Every formula of pyguide in plain torch, for any floating dtype and device.

This module is the oracle of the tests (call it with float64 input) and the
implementation on devices without a native backend. It is differentiable by
autograd to any order. It is written to be read beside the formulas, not to be
fast; the fast implementation of the same functions is :mod:`pyguide.ops`.

Notation: ``X`` is n x d (n samples; every other axis flattened), ``K = X X^T``,
``H = I - 11^T / n``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "center_features",
    "cka",
    "cka_matrix",
    "cka_pairs",
    "cka_pairs_and_flags",
    "cosine_matrix",
    "entries_center",
    "euclidean_matrix",
    "feature_space_inner_product",
    "gram",
    "gram_alignment",
    "h_center",
    "off_diagonal_center",
    "pairwise_alignment",
    "rbf_matrix",
    "u_center",
]


_Function = TypeVar("_Function", bound=Callable[..., object])


def _without_autocast(function: _Function) -> _Function:
    """Run with autocast off on every device: inside it even float32 products are 16-bit."""

    @functools.wraps(function)
    def wrapped(xs: Sequence[Tensor], *args: object, **kwargs: object) -> object:
        device = xs[0].device.type if len(xs) else "cpu"
        if not torch.amp.is_autocast_available(device):
            return function(xs, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(xs, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _as_matrix(x: Tensor) -> Tensor:
    """Flatten (n, ...) to (n, d); 16-bit types become float32."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.reshape(x.shape[0], -1)


def center_features(x: Tensor) -> Tensor:
    """``H X`` of an (n, d) matrix: subtract each feature's mean over the samples.

    The mean is taken of ``x - x[0]``, so a constant feature becomes exactly zero.
    """
    x = x - x[:1]
    return x - x.mean(dim=0, keepdim=True)


def h_center(k: Tensor) -> Tensor:
    """``H K H`` of a symmetric (n, n) matrix."""
    rows = k.mean(dim=1, keepdim=True)
    return k - rows - rows.mT + rows.mean()


def u_center(k: Tensor) -> Tensor:
    """U-centre a symmetric (n, n) matrix (Székely & Rizzo 2014); needs n >= 4.

    Zero the diagonal; off it ``K_ij - (r_i + r_j)/(n-2) + s/((n-1)(n-2))`` with
    ``r`` the row sums and ``s`` the total of the zero-diagonal matrix.
    """
    n = k.shape[0]
    off_diagonal = 1.0 - torch.eye(n, dtype=k.dtype, device=k.device)
    k = k * off_diagonal
    r = k.sum(dim=1, keepdim=True)
    return (k - (r + r.mT) / (n - 2) + r.sum() / ((n - 1) * (n - 2))) * off_diagonal


@_without_autocast
def gram(xs: Sequence[Tensor], *, center: bool = True) -> Tensor:
    """Gram matrices ``X X^T`` of L layers, centred to ``H X X^T H`` by default: (L, n, n)."""
    matrices = [_as_matrix(x) for x in xs]
    if center:
        matrices = [center_features(x) for x in matrices]
    grams = [x @ x.mT for x in matrices]
    dtype = torch.float64 if all(k.dtype == torch.float64 for k in grams) else torch.float32
    return torch.stack([k.to(dtype) for k in grams])


def _tokens(layers: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The layers (n, T, ...) token by token: T lists of layers."""
    return list(zip(*(x.unbind(1) for x in layers), strict=True))


def off_diagonal_center(s: Tensor) -> Tensor:
    """Zero the diagonal, and subtract the mean of the other entries from them."""
    off_diagonal = 1.0 - torch.eye(len(s), dtype=s.dtype, device=s.device)
    s = s * off_diagonal
    return (s - s.sum() / off_diagonal.sum()) * off_diagonal


def entries_center(s: Tensor) -> Tensor:
    """Subtract the mean of all entries."""
    return s - s.mean()


def _squared_distances(x: Tensor) -> Tensor:
    """``||x_i - x_j||^2`` of an (n, d) matrix, at least 0."""
    x = center_features(x)
    return _distances_of_gram(x @ x.mT)


def _distances_of_gram(k: Tensor) -> Tensor:
    squares = k.diagonal()
    return (squares[:, None] + squares - 2 * k).clamp(min=0)


def rbf_matrix(x: Tensor, multiple: float = 1.0, bandwidth: float = 0.0) -> Tensor:
    """``exp(-D_ij / (2 sigma^2))`` with squared distances D of an (n, d) matrix.

    ``sigma^2`` is ``bandwidth^2`` if that is not 0, else ``multiple^2`` times the median of all
    n^2 squared distances (Kornblith et al. 2019), which is no variable of the gradient.
    """
    return _rbf(_squared_distances(x), multiple, bandwidth)


def _rbf(d: Tensor, multiple: float = 1.0, bandwidth: float = 0.0) -> Tensor:
    ordered = d.detach().flatten().sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    variance = multiple**2 * median if not bandwidth else median.new_tensor(bandwidth**2)
    # Where the median is 0, 1 for equal samples and 0 for others.
    exponent = torch.where(variance == 0, torch.where(d == 0, 0.0, torch.inf), d / (2 * variance))
    return torch.exp(-exponent)


def euclidean_matrix(x: Tensor) -> Tensor:
    """``||x_i - x_j||`` of an (n, d) matrix."""
    return _euclidean(_squared_distances(x))


def _euclidean(d: Tensor) -> Tensor:
    # `where` before the root: the root's gradient at 0 is infinite.
    return torch.where(d == 0, d, torch.where(d == 0, 1.0, d).sqrt())


def cosine_matrix(x: Tensor) -> Tensor:
    """``1 - cos(x_i, x_j)`` of an (n, d) matrix; a sample that is zero has cosine 0 to others."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    zero = norms == 0
    x = x / torch.where(zero, torch.ones_like(norms), norms)
    halves = _squared_distances(x) / 2
    other = 1.0 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    return torch.where(zero | zero.mT, other, halves)


_MATRICES: dict[str, Callable[..., Tensor]] = {
    "rbf": rbf_matrix,
    "euclidean": euclidean_matrix,
    "cosine": cosine_matrix,
}
_CENTERINGS = {
    "h": h_center,
    "u": u_center,
    "off_diagonal": off_diagonal_center,
    "entries": entries_center,
}


@_without_autocast
def pairwise_alignment(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    function: str,
    parameters: Sequence[float],
    centering: str,
    *,
    pairs: Sequence[tuple[int, int]],
    per_token: bool = False,
) -> tuple[Tensor, Tensor]:
    """RBF CKA and RSA: alignments of every pair and whether it is degenerate, (P,) each.

    ``<S°, T°> / (||S°|| ||T°||)`` with S the matrix of `function` ("rbf", "euclidean" or
    "cosine") and ``°`` the centring "h", "u", "off_diagonal" or "entries". With ``per_token``
    both are (P, T).
    """
    if per_token and pairs:
        of_tokens = [
            pairwise_alignment(x, y, function, parameters, centering, pairs=pairs)
            for x, y in zip(_tokens(xs), _tokens(ys), strict=True)
        ]
        return (
            torch.stack([value for value, _ in of_tokens], dim=1),
            torch.stack([flag for _, flag in of_tokens], dim=1),
        )

    def centered(x: Tensor) -> tuple[Tensor, Tensor]:
        s = _MATRICES[function](_as_matrix(x), *parameters)
        if centering in ("h", "u"):
            return _CENTERINGS[centering](s), h_center(s).diagonal().sum()
        return _CENTERINGS[centering](s), torch.linalg.vector_norm(s)

    return _aligned(xs, ys, pairs, centered)


def gram_alignment(
    grams: Sequence[Tensor],
    function: str,
    parameters: Sequence[float],
    centering: str,
    *,
    pairs: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Alignments of layers given by their centred Gram matrices, each (n, n): (P,) and (P,) bool.

    `function` is "linear" (CKA), "rbf" or "euclidean", `centering` as for
    :func:`pairwise_alignment`, `pairs` index `grams`.
    """
    of_distances: dict[str, Callable[..., Tensor]] = {"rbf": _rbf, "euclidean": _euclidean}

    def centered(k: Tensor) -> tuple[Tensor, Tensor]:
        if function == "linear":
            return _CENTERINGS[centering](k), k.diagonal().sum()
        s = of_distances[function](_distances_of_gram(k), *parameters)
        if centering in ("h", "u"):
            return _CENTERINGS[centering](s), h_center(s).diagonal().sum()
        return _CENTERINGS[centering](s), torch.linalg.vector_norm(s)

    return _aligned(grams, grams, pairs, centered)


@_without_autocast
def cka_pairs_and_flags(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    debiased: bool = False,
    per_token: bool = False,
) -> tuple[Tensor, Tensor]:
    """CKA of every pair and whether one of its layers is degenerate: (P,) and (P,) bool.

    With ``per_token`` the layers are (n, T, ...) and both results (P, T), token by token.

    A layer is degenerate when ``tr(Kc) = 0`` or ``||K°|| <= 16 eps tr(Kc)``; a pair with
    a degenerate layer has value 0 and gradient 0, unless the formula gives NaN.
    """
    if pairs is None:
        pairs = [(i, i) for i in range(len(xs))]
    if per_token and len(xs):
        of_tokens = [
            cka_pairs_and_flags(x, y, pairs=pairs, debiased=debiased)
            for x, y in zip(_tokens(xs), _tokens(ys), strict=True)
        ]
        return (
            torch.stack([value for value, _ in of_tokens], dim=1),
            torch.stack([flag for _, flag in of_tokens], dim=1),
        )
    center = u_center if debiased else h_center

    def centered(x: Tensor) -> tuple[Tensor, Tensor]:
        x = center_features(_as_matrix(x))
        k = x @ x.mT
        return center(k), k.diagonal().sum()

    return _aligned(xs, ys, pairs, centered)


def _aligned(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    centered: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """``<S°, T°> / (||S°|| ||T°||)`` of every pair and whether it is degenerate.

    ``centered`` gives a layer's ``S°`` and the scale below which its norm is rounding.
    """
    all_double = all(t.dtype == torch.float64 for t in [*xs, *ys])
    dtype = torch.float64 if all_double else torch.float32
    eps = torch.finfo(dtype).eps

    def normed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, scale = centered(x)
        # `where` before the root: the root's gradient at 0 is infinite.
        square = (s * s).sum()
        square = torch.where(square == 0, torch.ones_like(square), square)
        norm = square.sqrt()
        size, scale = torch.linalg.vector_norm(s.detach()), scale.detach()
        return s, norm, (scale == 0) | (size <= 16 * eps * scale)

    left = {i: normed(xs[i]) for i in {i for i, _ in pairs}}
    right = {j: normed(ys[j]) for j in {j for _, j in pairs}}
    values, flags = [], []
    for i, j in pairs:
        k, k_norm, k_degenerate = left[i]
        m, m_norm, m_degenerate = right[j]
        value = (k / k_norm * (m / m_norm)).sum()
        flag = (k_degenerate | m_degenerate) & ~value.detach().isnan()
        values.append(torch.where(flag, torch.zeros_like(value), value).to(dtype))
        flags.append(flag)
    if not values:
        device = xs[0].device if len(xs) else None
        empty = torch.zeros(0, dtype=dtype, device=device)
        return empty, empty.bool()
    return torch.stack(values), torch.stack(flags)


def cka_pairs(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    debiased: bool = False,
    per_token: bool = False,
) -> Tensor:
    """CKA of every pair of layers, (P,): ``<K°, L°> / (||K°|| ||L°||)``.

    ``°`` is H-centring (biased; Kornblith et al. 2019) or U-centring (debiased;
    Song et al. 2012). See :func:`pyguide.cka_pairs`.
    """
    return cka_pairs_and_flags(xs, ys, pairs=pairs, debiased=debiased, per_token=per_token)[0]


def cka(x: Tensor, y: Tensor, *, debiased: bool = False, per_token: bool = False) -> Tensor:
    """CKA of two layers, a scalar; with ``per_token`` of each token, (T,)."""
    return cka_pairs([x], [y], debiased=debiased, per_token=per_token)[0]


def cka_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None, *, debiased: bool = False
) -> Tensor:
    """CKA of every x with every y: (len(xs), len(ys))."""
    ys = xs if ys is None else ys
    pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys))]
    return cka_pairs(xs, ys, pairs=pairs, debiased=debiased).reshape(len(xs), len(ys))


def feature_space_inner_product(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """``<K°, L°>`` from d x d matrices, for n > d.

    Biased: ``||Y^T X||^2`` with column-centred X and Y. Debiased:
    ``||Y^T X||^2 - n/(n-2) sum_i |x_i|^2 |y_i|^2 + ||X||^2 ||Y||^2 / ((n-1)(n-2))``.
    """
    x = center_features(_as_matrix(x))
    y = center_features(_as_matrix(y))
    value = (y.mT @ x).square().sum()
    if debiased:
        n = x.shape[0]
        p, q = x.square().sum(dim=1), y.square().sum(dim=1)
        value = value - n / (n - 2) * (p * q).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2))
    return value
