"""What distances cost a training step: multiply-adds, and bytes that are kept for backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pyguide.ops.distinct import distinct_layers
from pyguide.ops.inputs import check_pairs

__all__ = [
    "IN_DOUBLE",
    "PairCost",
    "PlannedLayers",
    "Work",
    "eigh_work",
    "features",
    "pair_costs",
    "svd_work",
]

#: A multiply-add in float64 counts as so many.
IN_DOUBLE = 2


@dataclass(frozen=True)
class PairCost:
    """What a pair of layers adds, in one training step, to the cost of the pairs before it.

    A layer in several pairs is counted in the first of them.
    """

    #: "sample" (n x n matrices) or "feature" (d x d products).
    route: str
    #: Multiply-adds, one in float64 counted twice, of products and decompositions.
    forward: int
    #: The same of the gradients in layers that require grad.
    backward: int
    #: Bytes of matrices that are kept for backward, without the layers themselves.
    gram_bytes: int
    #: Bytes that forward or backward needs beside these, the layers and their gradients; None
    #: where it is not known.
    workspace_bytes: int | None = None


class Work(NamedTuple):
    """Multiply-adds as in :class:`PairCost`, and bytes that are kept for backward."""

    forward: int = 0
    backward: int = 0
    kept: int = 0


class PlannedLayers(NamedTuple):
    """The distinct layers of pairs, or one token of each where tokens are compared one by one."""

    layers: list[Tensor]
    left: list[int]
    right: list[int]
    tokens: int  # how many there are of each

    @classmethod
    def of(
        cls,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        pairs: Sequence[tuple[int, int]] | None,
        per_token: bool,
    ) -> PlannedLayers:
        layers, left, right = distinct_layers(xs, ys, check_pairs(pairs, len(xs), len(ys)))
        if not per_token or not layers:
            return cls(layers, left, right, 1)
        tokens = [x.detach().select(1, 0).requires_grad_(x.requires_grad) for x in layers]
        return cls(tokens, left, right, layers[0].size(1))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.left, self.right, strict=True))

    @property
    def differentiable(self) -> bool:
        return any(x.requires_grad for x in self.layers)


def features(x: Tensor) -> int:
    """d of an (n, ...) layer."""
    return x.numel() // x.size(0)


def _nothing(layer: Tensor) -> Work:
    return Work()


def _in_sample_space(x: Tensor, y: Tensor) -> str:
    return "sample"


def pair_costs(
    planned: PlannedLayers,
    of_layer: Callable[[Tensor], Work],
    of_pair: Callable[[Tensor, Tensor], Work],
    *,
    of_left: Callable[[Tensor], Work] = _nothing,
    of_right: Callable[[Tensor], Work] = _nothing,
    route: Callable[[Tensor, Tensor], str] = _in_sample_space,
) -> list[PairCost]:
    """The costs of pairs from the work for each layer, once, and for each pair.

    `of_left` and `of_right` are the work for each layer as the first or second of a pair.
    """
    seen: set[tuple[str, int]] = set()
    costs = []
    for i, j in planned.pairs:
        x, y = planned.layers[i], planned.layers[j]
        work = [of_pair(x, y)]
        roles = {
            ("layer", i): (of_layer, x),
            ("layer", j): (of_layer, y),
            ("left", i): (of_left, x),
            ("right", j): (of_right, y),
        }
        work += [of(layer) for role, (of, layer) in roles.items() if role not in seen]
        seen |= roles.keys()
        columns = zip(*work, strict=True)
        costs.append(PairCost(route(x, y), *(planned.tokens * sum(column) for column in columns)))
    return costs


def eigh_work(n: int) -> int:
    """Eigenvalues and eigenvectors of a symmetric n x n matrix in float64.

    9 n^3 floating point operations, half as many multiply-adds (Golub & Van Loan, Matrix
    Computations, 8.3: the symmetric QR algorithm).
    """
    return IN_DOUBLE * 9 * n**3 // 2


def svd_work(rows: int, columns: int) -> int:
    """The thin singular value decomposition of a matrix in float64.

    Of m x k, m >= k: ``min(14 m k^2 + 8 k^3, 6 m k^2 + 20 k^3)`` floating point operations, half
    as many multiply-adds (Golub & Van Loan, Matrix Computations, 8.6).
    """
    m, k = max(rows, columns), min(rows, columns)
    return IN_DOUBLE * min(14 * m * k**2 + 8 * k**3, 6 * m * k**2 + 20 * k**3) // 2
