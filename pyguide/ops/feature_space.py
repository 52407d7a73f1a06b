"""CKA through d x d products of the features, for many samples of few features.

With column-centred X and Y, ``<Kc, Lc> = ||Y^T X||^2``; the debiased inner product is
``||Y^T X||^2 - n/(n-2) sum_i |x_i|^2 |y_i|^2 + ||X||^2 ||Y||^2 / ((n-1)(n-2))`` (Song et al.
2012, written for features). Computed in float64 throughout: the debiased terms cancel, and the
matrices are small where this route is chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyguide.ops.native import result_dtype
from pyguide.reference import center_features

__all__ = ["backward", "fake_saved", "forward"]


def _centered(x: Tensor) -> Tensor:
    return center_features(x.reshape(x.size(0), -1).double())


class _Products:
    """Inner products of centred layers, each computed once, and their derivatives."""

    def __init__(self, layers: list[Tensor], debiased: bool):
        self.x = [_centered(x) for x in layers]
        self.n = layers[0].size(0)
        self.debiased = debiased
        self.row_norms = [x.square().sum(dim=1) for x in self.x]
        self.traces = [float(norms.sum()) for norms in self.row_norms]
        self._cross: dict[tuple[int, int], Tensor] = {}

    def cross(self, i: int, j: int) -> Tensor:
        """``X_i^T X_j``."""
        if (j, i) in self._cross:
            return self._cross[j, i].T
        if (i, j) not in self._cross:
            self._cross[i, j] = self.x[i].T @ self.x[j]
        return self._cross[i, j]

    def inner(self, i: int, j: int) -> float:
        """``<K°_i, K°_j>``."""
        value = float(self.cross(i, j).square().sum())
        if self.debiased:
            n = self.n
            value -= n / (n - 2) * float(self.row_norms[i] @ self.row_norms[j])
            value += self.traces[i] * self.traces[j] / ((n - 1) * (n - 2))
        return value

    def derivative(self, i: int, j: int) -> Tensor:
        """Half the derivative of ``inner(i, j)`` in X_i with X_j fixed, before H: (n, d_i)."""
        value = self.x[j] @ self.cross(j, i)
        if self.debiased:
            n = self.n
            weights = self.traces[j] / ((n - 1) * (n - 2)) - n / (n - 2) * self.row_norms[j]
            value += weights[:, None] * self.x[i]
        return value

    def is_degenerate(self, i: int, norm_squared: float, eps: float) -> bool:
        # As in sample space, ||K°|| <= 16 eps tr(Kc). The debiased norm is a difference of
        # terms of size tr^2, so below 2^-46 tr^2 it is rounding.
        threshold = max((16 * eps) ** 2, 2.0**-46)
        return self.traces[i] == 0 or norm_squared <= threshold * self.traces[i] ** 2


@torch.no_grad()
def forward(
    layers: list[Tensor], left: list[int], right: list[int], debiased: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Values (P,) float64, degenerate flags (P,) bool, and nothing for the gradient."""
    products = _Products(layers, debiased)
    eps = torch.finfo(result_dtype(layers)).eps
    norms = [products.inner(i, i) for i in range(len(layers))]
    degenerate_layers = [products.is_degenerate(i, h, eps) for i, h in enumerate(norms)]
    values, flags = [], []
    for i, j in zip(left, right, strict=True):
        inner = products.inner(i, j)
        nan = any(math.isnan(v) for v in (inner, norms[i], norms[j]))
        flag = not nan and (degenerate_layers[i] or degenerate_layers[j])
        flags.append(flag)
        if nan:
            values.append(math.nan)
        else:
            values.append(0.0 if flag else inner * norms[i] ** -0.5 * norms[j] ** -0.5)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(flags, dtype=torch.bool), []


def fake_saved(layers: list[Tensor]) -> list[Tensor]:
    """Shapes of what :func:`forward` saves."""
    return []


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
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer; the products are made again."""
    products = _Products(layers, debiased)
    norms = [products.inner(i, i) for i in range(len(layers))]
    # Coefficients of derivative(i, j) in the gradient of layer i.
    scales: dict[tuple[int, int], float] = {}
    for p, (i, j) in enumerate(zip(left, right, strict=True)):
        if degenerate[p]:
            continue
        g, c = float(grad[p]), float(values[p])
        for a, b in ((i, j), (j, i)):
            # A NaN value may come with a zero norm, by which Python would refuse to divide.
            cross = own = math.nan
            if not math.isnan(c):
                cross = 2 * g * norms[a] ** -0.5 * norms[b] ** -0.5
                own = -2 * g * c / norms[a]
            scales[a, b] = scales.get((a, b), 0.0) + cross
            scales[a, a] = scales.get((a, a), 0.0) + own
    grads = []
    for w in wanted:
        total = torch.zeros_like(products.x[w])
        for (i, j), scale in scales.items():
            if i == w:
                total += scale * products.derivative(i, j)
        total -= total.mean(dim=0)
        out = torch.empty_like(layers[w])
        grads.append(out.copy_(total.reshape(out.shape)))
    return grads
