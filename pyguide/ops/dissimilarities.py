"""Functions of the squared distances D between samples, and their derivatives.

Everything is float64 and in place: matrices are (B, n, n), one a layer and token. A derivative is
given as that of ``<A, S> / 2``, A symmetric, in the samples x: ``B X + diag(m) X`` with
``B = 2 (diag(W 1) - W)``, ``W = A * dS/dD``. B has zero row sums, so a shift of X changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyguide.ops.contract import token_count

__all__ = ["Dissimilarity", "dissimilarity", "squared_distances"]

_CHUNK = 512  # features whose squares are summed in float32


def squared_distances(grams: Tensor) -> Tensor:
    """``D_ij = K_ii + K_jj - 2 K_ij`` of Gram matrices (B, n, n) with any shift: float64.

    What is below the rounding of ``K_ii + K_jj`` is 0.
    """
    squares = grams.diagonal(dim1=1, dim2=2).double()
    sums = squares[:, :, None] + squares[:, None, :]
    d = sums.add(grams, alpha=-2)
    # The diagonal may be rounded below zero.
    rounding = sums.clamp_(min=0).mul_(4 * torch.finfo(grams.dtype).eps)
    return d.masked_fill_(d <= rounding, 0.0)


class Dissimilarity(Protocol):
    """S as a function of D and of what :meth:`state` keeps of each matrix."""

    #: Arithmetic for an entry of S and of W, D being there.
    operations: tuple[int, int]

    def state_size(self, n: int) -> int:
        """Numbers a matrix in the state."""

    def state(self, d: Tensor, layers: Sequence[Tensor], per_token: bool) -> Tensor:
        """(B, state_size) for the matrices of these layers."""

    def of_(self, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """S, in the memory of D, and ||.|| of what was subtracted in it, (B,), if anything was."""

    def weigh_(self, a: Tensor, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """W in the memory of A, and m, (B, n), if S depends on more than D."""


class _RBF:
    """``exp(-D / (2 sigma^2)) - 1``; sigma is no variable of the derivative.

    The 1 is nothing to H- and U-centring, and without it wide kernels keep their digits.
    """

    def __init__(self, multiple: float, bandwidth: float) -> None:
        self._multiple, self._bandwidth = multiple, bandwidth
        median = 0 if bandwidth else 1  # it looks at every entry
        self.operations = 2 + median, 4

    def state_size(self, n: int) -> int:
        return 1

    def state(self, d: Tensor, layers: Sequence[Tensor], per_token: bool) -> Tensor:
        """1 / (2 sigma^2)."""
        if self._bandwidth:
            return d.new_full((len(d), 1), 0.5 / self._bandwidth / self._bandwidth)
        return 0.5 / self._multiple / self._multiple / _median(d)[:, None]

    def of_(self, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        # Where the median is 0, S is 0 for equal samples and -1 for others.
        inverse = state.clamp(max=torch.finfo(torch.float64).max)
        return d.mul_(-inverse[:, :, None]).expm1_(), None

    def weigh_(self, a: Tensor, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        inverse = state.masked_fill(state.isinf(), 0.0)[:, :, None]
        return a.mul_(d.mul_(-inverse).exp_()).mul_(-inverse), None


class _Euclidean:
    """``sqrt(D)``, with derivative 0 at 0."""

    operations = 1, 3

    def state_size(self, n: int) -> int:
        return 0

    def state(self, d: Tensor, layers: Sequence[Tensor], per_token: bool) -> Tensor:
        return d.new_empty((len(d), 0))

    def of_(self, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return d.sqrt_(), None

    def weigh_(self, a: Tensor, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        zero = d == 0
        return a.mul_(0.5).mul_(d.rsqrt_().masked_fill_(zero, 0.0)), None


class _Cosine:
    """``1 - cos``, that is ``(D - (rho_i - rho_j)^2) / (2 rho_i rho_j)``, rho the samples' norms.

    This form loses no digits where the samples are far from zero, as ``K_ij / (rho_i rho_j)``
    does. A sample that is zero has similarity 0 to every other.
    """

    # S and the norm of what is subtracted in it; S again, W and m.
    operations = 4 + 6, 4 + 6

    def state_size(self, n: int) -> int:
        return n

    def state(self, d: Tensor, layers: Sequence[Tensor], per_token: bool) -> Tensor:
        """The norms of the samples."""
        return torch.cat([_row_norms(x, per_token) for x in layers])

    def of_(self, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        inverse, zero = _inverse(state)
        # What of samples in one direction remains of D is rounding of terms of this size.
        differences = state[:, :, None] - state[:, None, :]
        terms = (state[:, :, None] + state[:, None, :]).mul_(differences).abs_().add_(d)
        subtracted = terms.mul_(0.5 * inverse[:, :, None]).mul_(inverse[:, None, :])
        return self._cosines_(d, differences, inverse, zero), _norm(subtracted)

    def _cosines_(self, d: Tensor, differences: Tensor, inverse: Tensor, zero: Tensor) -> Tensor:
        d.sub_(differences.square_()).clamp_(min=0)
        d.mul_(0.5 * inverse[:, :, None]).mul_(inverse[:, None, :])
        d.masked_fill_(zero[:, :, None], 1.0).masked_fill_(zero[:, None, :], 1.0)
        d.diagonal(dim1=1, dim2=2).zero_()
        return d

    def weigh_(self, a: Tensor, d: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        inverse, zero = _inverse(state)
        # dS_ij/drho_i = (rho_j - rho_i) / (rho_i rho_j) - S_ij / rho_i, and drho_i/dx_i = x_i/rho_i
        s = self._cosines_(d, state[:, :, None] - state[:, None, :], inverse, zero)
        differences = inverse[:, :, None] - inverse[:, None, :]
        radial = differences.addcmul_(s, inverse[:, :, None].expand_as(s), value=-1).mul_(a)
        m = radial.sum(dim=2).mul_(inverse)
        return a.mul_(0.5 * inverse[:, :, None]).mul_(inverse[:, None, :]), m


def dissimilarity(name: str, parameters: Sequence[float]) -> Dissimilarity:
    """By name: "rbf" (multiple of the median rule, or bandwidth if that is not 0), "euclidean"
    or "cosine".
    """
    functions = {"rbf": _RBF, "euclidean": _Euclidean, "cosine": _Cosine}
    return functions[name](*parameters)


def _median(d: Tensor) -> Tensor:
    """Median of all n^2 entries of symmetric matrices with zero diagonals, (B,).

    Of the sorted entries the first n are zeros, and the others come in twos.
    """
    n = d.size(1)
    upper = max(n * n // 2 - n, 0) // 2
    below = d.flatten(1).index_select(1, _triangle(n, d.device))
    if d.is_cuda and torch.are_deterministic_algorithms_enabled():
        # torch refuses kthvalue there, of which only the positions are not determined.
        median = below.sort(dim=1).values.select(1, upper)
    else:
        median = below.kthvalue(upper + 1, dim=1).values
    if n % 2:
        return median
    # The mean of the two in the middle: the lower one is the largest of those before.
    smaller = below < median[:, None]
    largest = below.masked_fill(~smaller, -math.inf).amax(dim=1)
    lower = torch.where(smaller.sum(dim=1) == upper, largest, median)
    return (lower.clamp_(min=0) + median) / 2


def _triangle(n: int, device: torch.device) -> Tensor:
    """Positions of the entries below the diagonal of a flat n x n matrix."""
    rows, columns = torch.tril_indices(n, n, -1, device=device)
    return rows * n + columns


def _row_norms(layer: Tensor, per_token: bool) -> Tensor:
    """Norms of the samples of each token, (T, n) float64."""
    x = layer.reshape(layer.size(0), token_count([layer], per_token), -1)
    x = x if x.dtype == torch.float64 else x.float()
    whole = x.size(2) // _CHUNK * _CHUNK
    parts = [x[:, :, :whole].unflatten(2, (-1, _CHUNK)), x[:, :, None, whole:]]
    squares = [torch.linalg.vector_norm(p, dim=3).double().square().sum(dim=2) for p in parts]
    return (squares[0] + squares[1]).sqrt().T


def _norm(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(1, 2))


def _inverse(norms: Tensor) -> tuple[Tensor, Tensor]:
    """1 / norms with 0 for 0, and which are 0."""
    zero = norms == 0
    return norms.reciprocal().masked_fill_(zero, 0.0), zero
