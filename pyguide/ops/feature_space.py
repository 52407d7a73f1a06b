"""CKA through d x d products of the features, for many samples of few features.

With column-centred X and Y, ``<Kc, Lc> = ||Y^T X||^2``; the debiased inner product is
``||Y^T X||^2 - n/(n-2) sum_i |x_i|^2 |y_i|^2 + ||X||^2 ||Y||^2 / ((n-1)(n-2))`` (Song et al.
2012, written for features). The mean is subtracted before anything is multiplied, and products
are summed in float32 over at most 512 samples, then in float64. Float64 layers and
small batches are multiplied in float64, and so is everything for the debiased estimator: where few
samples hold most of the norm, its terms cancel to the last digit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyguide.ops.contract import result_dtype, token_count

__all__ = ["Union", "backward", "fake_saved", "forward", "products_of"]

_CHUNK = 512  # samples that are summed in float32
_FEW_SAMPLES = 16  # as kFewSamples in csrc/cpu/gram.cpp


class Union(Protocol):
    """The batch that the layers' samples are a part of, spread over processes."""

    @property
    def n(self) -> int:
        """Samples in all."""

    def total_(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over the processes, in place."""


def products_of(layers: int, left: list[int], right: list[int]) -> list[tuple[int, int]]:
    """The products ``X_i^T X_j``, i <= j, that these pairs need: every layer's own ones first."""
    pairs = {(min(i, j), max(i, j)) for i, j in zip(left, right, strict=True) if i != j}
    return [(i, i) for i in range(layers)] + sorted(pairs)


def _centered(
    layers: list[Tensor], debiased: bool, per_token: bool, union: Union | None
) -> list[Tensor]:
    """X minus its column means for each of T tokens, (T, n, d), in the type it is multiplied in."""
    n = layers[0].size(0) if union is None else union.n
    x = [_by_tokens(layer, n, debiased, per_token) for layer in layers]
    x = [t - mean for t, mean in zip(x, _means(x, union), strict=True)]
    # What rounding left of the mean: 6e-5 standard deviations at an offset of 1000.
    for t, mean in zip(x, _means(x, union), strict=True):
        t.sub_(mean)
    return x


def _by_tokens(layer: Tensor, n: int, debiased: bool, per_token: bool) -> Tensor:
    """(T, samples, d) in float32 or float64."""
    x = layer.reshape(layer.size(0), token_count([layer], per_token), -1).transpose(0, 1)
    in_double = debiased or x.dtype == torch.float64 or n <= _FEW_SAMPLES
    in_double = in_double or not _float32_is_exact(x.device)
    return x.to(torch.float64 if in_double else torch.float32)


def _means(x: list[Tensor], union: Union | None) -> list[Tensor]:
    """The means over the samples, (T, 1, d)."""
    if union is None:
        return [t.mean(dim=1, keepdim=True) for t in x]
    sums = [t.sum(dim=1, keepdim=True, dtype=torch.float64) for t in x]
    union.total_(sums)
    return [(sum_ / union.n).to(t.dtype) for sum_, t in zip(sums, x, strict=True)]


def _multiplied_in(layer: Tensor, debiased: bool) -> torch.dtype:
    in_double = debiased or layer.dtype == torch.float64 or layer.size(0) <= _FEW_SAMPLES
    return torch.float64 if in_double or not _float32_is_exact(layer.device) else torch.float32


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``X^T Y`` of each token in float64."""
    if x.dtype != y.dtype or x.dtype == torch.float64:
        return torch.bmm(x.double().mT, y.double())
    total = x.new_zeros((x.size(0), x.size(2), y.size(2)), dtype=torch.float64)
    # Inside the operator, where autocast still holds.
    with torch.autocast(x.device.type, enabled=False):
        for rows, others in zip(x.split(_CHUNK, dim=1), y.split(_CHUNK, dim=1), strict=True):
            total += torch.bmm(rows.mT, others)
    return total


def _float32_is_exact(device: torch.device) -> bool:
    """Whether torch's float32 products there are: a lower matmul precision allows less."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    return getattr(matmul, "fp32_precision", "none") in ("none", "ieee")


class _Inner:
    """Inner products ``<K°_i, K°_j>`` of centred layers from the products of their features.

    Everything is (T,), a number a token, and stays on the layers' device: a number that Python
    reads would wait for it.
    """

    def __init__(
        self,
        x: list[Tensor],
        products: dict[tuple[int, int], Tensor],
        debiased: bool,
        union: Union | None,
    ):
        self.n = x[0].size(1) if union is None else union.n
        self.products = products
        self.debiased = debiased
        self.row_norms = [t.double().square().sum(dim=2) for t in x] if debiased else []
        self._rows = self._row_products(union)
        self.norms = torch.stack([self(i, i) for i in range(len(x))])

    def _row_products(self, union: Union | None) -> dict[tuple[int, int], Tensor]:
        """``sum_i |x_i|^2 |y_i|^2`` for the debiased estimator."""
        if not self.debiased:
            return {}
        norms = self.row_norms
        rows = {(i, j): (norms[i] * norms[j]).sum(dim=1) for i, j in self.products}
        if union is not None:
            union.total_(list(rows.values()))
        return rows

    @functools.cached_property
    def traces(self) -> Tensor:
        """tr(Kc) of the layers, (L, T)."""
        own = [product for (i, j), product in self.products.items() if i == j]
        return torch.stack([product.diagonal(dim1=1, dim2=2).sum(dim=1) for product in own])

    def __call__(self, i: int, j: int) -> Tensor:
        key = min(i, j), max(i, j)
        value = self.products[key].square().sum(dim=(1, 2))
        if self.debiased:
            n = self.n
            value = value - n / (n - 2) * self._rows[key]
            value = value + self.traces[i] * self.traces[j] / ((n - 1) * (n - 2))
        return value

    def degenerate(self, eps: float) -> Tensor:
        """Which layers are, (L, T) bool."""
        # As in sample space, ||K°|| <= 16 eps tr(Kc). The debiased norm is a difference of
        # terms of size tr^2, so below 2^-46 tr^2 it is rounding.
        threshold = max((16 * eps) ** 2, 2.0**-46)
        return (self.traces == 0) | (self.norms <= threshold * self.traces**2)

    def row_weights(self, j: int) -> Tensor:
        """What the debiased terms add to the derivative: (T, n) factors of the rows of X_i."""
        n = self.n
        return self.traces[j][:, None] / ((n - 1) * (n - 2)) - n / (n - 2) * self.row_norms[j]


def _of_pairs(of_layers: Tensor, left: list[int], right: list[int]) -> Tensor:
    """What each pair's layers have, (2, P, T), without an index, which would be copied there."""
    each = of_layers.unbind()
    return torch.stack([each[i] for i in (*left, *right)]).unflatten(0, (2, len(left)))


@torch.no_grad()
def forward(
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    debiased: bool,
    per_token: bool,
    precision: int,
    union: Union | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Values (P T,) float64, degenerate flags (P T,) bool, and the products for the gradient.

    ``precision`` means nothing here: products are exact to float32 or float64. With a `union` the
    layers are this process's samples of it, and every process gets the same results.
    """
    x = _centered(layers, debiased, per_token, union)
    keys = products_of(len(layers), left, right)
    products = {(i, j): _product(x[i], x[j]) for i, j in keys}
    if union is not None:
        union.total_(list(products.values()))
    inner = _Inner(x, products, debiased, union)
    layer_flags = inner.degenerate(torch.finfo(result_dtype(layers)).eps)
    values = torch.stack([inner(i, j) for i, j in zip(left, right, strict=True)])
    norms = _of_pairs(inner.norms, left, right)
    flags = _of_pairs(layer_flags, left, right).any(dim=0)
    flags &= ~(values.isnan() | norms.isnan().any(dim=0))
    of_left, of_right = norms**-0.5
    values = (values * of_left * of_right).masked_fill_(flags, 0.0)
    return values.flatten(), flags.flatten(), list(products.values())


def fake_saved(
    layers: list[Tensor], left: list[int], right: list[int], per_token: bool
) -> list[Tensor]:
    """Shapes of what :func:`forward` saves."""
    tokens = token_count(layers, per_token)
    features = [x.numel() // (x.size(0) * tokens) for x in layers]
    return [
        layers[0].new_empty((tokens, features[i], features[j]), dtype=torch.float64)
        for i, j in products_of(len(layers), left, right)
    ]


def workspace_bytes(layers: list[Tensor], dtype: torch.dtype, debiased: bool) -> int:
    """Of :func:`backward`, for one token: centred layers, and sums for those that require grad."""
    return sum(
        (1 + x.requires_grad) * x.numel() * _multiplied_in(x, debiased).itemsize for x in layers
    )


@torch.no_grad()
def backward(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    saved: list[Tensor],
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    wanted: list[int],
    debiased: bool,
    per_token: bool,
    precision: int,
    union: Union | None = None,
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer."""
    x = _centered(layers, debiased, per_token, union)
    product_of = dict(zip(products_of(len(layers), left, right), saved, strict=True))
    inner = _Inner(x, product_of, debiased, union)
    grad, values, degenerate = (t.view(len(left), -1) for t in (grad, values, degenerate))
    scales = _scales(grad.double(), values, degenerate, inner.norms, left, right)
    grads = []
    # All layers' means in one message.
    for group in [[w] for w in wanted] if union is None else [wanted]:
        totals = [_row_sums(w, x, scales[w], product_of, inner) for w in group]
        for w, total, mean in zip(group, totals, _means(totals, union), strict=True):
            out = torch.empty_like(layers[w])
            grads.append(out.copy_(total.sub_(mean).transpose(0, 1).reshape(out.shape)))
    return grads


def _row_sums(
    w: int,
    x: list[Tensor],
    scales: dict[int, Tensor],
    product_of: dict[tuple[int, int], Tensor],
    inner: _Inner,
) -> Tensor:
    """The gradient in X_w, (T, n, d), but for its mean."""
    total = torch.zeros_like(x[w])
    for j, scale in scales.items():
        product = product_of[j, w] if j <= w else product_of[w, j].mT
        with torch.autocast(total.device.type, enabled=False):
            scaled = (scale[:, None, None] * product).to(total.dtype)
            total.baddbmm_(x[j].to(total.dtype), scaled)
        if inner.debiased:
            weights = (scale[:, None] * inner.row_weights(j)).to(total.dtype)
            total.addcmul_(weights[:, :, None], x[w])
    return total


def _scales(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    norms: Tensor,
    left: list[int],
    right: list[int],
) -> list[dict[int, Tensor]]:
    """``[i][j]``: the factor, in the gradient of X_i, of half the derivative of <K°_i, K°_j>.

    X_j is fixed in that derivative. Each is (T,); degenerate pairs give zeros.
    """
    scales: list[dict[int, Tensor]] = [{} for _ in range(len(norms))]

    def add(i: int, j: int, scale: Tensor) -> None:
        scales[i][j] = scales[i][j] + scale if j in scales[i] else scale

    norms = _of_pairs(norms, left, right)
    of_left, of_right = norms**-0.5
    cross = 2 * grad * of_left * of_right
    of_pairs = torch.stack([cross, *(-2 * grad * values / norms)])
    # A NaN value may come with norms that are numbers.
    of_pairs.masked_fill_(values.isnan(), math.nan).masked_fill_(degenerate, 0.0)
    for i, j, each in zip(left, right, of_pairs.unbind(dim=1), strict=True):
        both, own_left, own_right = each
        add(i, j, both)
        add(i, i, own_left)
        add(j, i, both)
        add(j, j, own_right)
    return scales
