"""What guidance will compare, how and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pyguide.distances import Distance, PairCost
from pyguide.guidance.comparison import Comparison, used_layers
from pyguide.guidance.pairing import Pair

__all__ = ["Plan", "PlanRow", "costs_of", "make_plan"]


@dataclass(frozen=True)
class PlanRow:
    """One pair of a :class:`Plan`. A layer in several pairs is counted in the first of them."""

    target: str
    guide: str
    per_token: bool
    target_shape: tuple[int, ...]
    guide_shape: tuple[int, ...]
    target_dtype: str
    guide_dtype: str
    #: "sample" (n x n Gram matrices) or "feature" (d x d products); None, like the
    #: costs, for a distance that does not know them (:meth:`pyguide.distances.Distance.costs`).
    route: str | None
    #: Multiply-adds, one in float64 counted twice: of products and decompositions and, for RBF
    #: CKA and RSA, one for each operation on each entry of an n x n matrix.
    forward: int | None
    backward: int | None
    #: Bytes of Gram matrices, their factors or products that are kept for backward.
    gram_bytes: int | None
    #: Bytes of the activations that are compared, and may be kept for backward.
    activation_bytes: int


@dataclass(frozen=True)
class Plan:
    """Pairs, shapes, route and cost of one training step; ``print(plan)`` shows a table."""

    #: Name of the distance.
    distance: str
    rows: tuple[PlanRow, ...]

    @property
    def totals(self) -> dict[str, int | None]:
        """Sums over the rows: forward, backward, gram_bytes and activation_bytes."""
        names = ("forward", "backward", "gram_bytes", "activation_bytes")
        columns = {name: [getattr(row, name) for row in self.rows] for name in names}
        return {name: None if None in cells else sum(cells) for name, cells in columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """The plan in types that JSON has."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row |= {name: list(row[name]) for name in ("target_shape", "guide_shape")}
        return {"distance": self.distance, "rows": rows, "totals": self.totals}

    def __str__(self) -> str:
        heads = ["target", "guide", "target shape", "guide shape", "dtype", "route"]
        heads += ["forward", "backward", "Gram", "activations"]
        body = [_cells(row) for row in self.rows]
        total = ["total", "", "", "", "", "", *_costs(self.totals)]
        lines = [heads, *body, total]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        table = [
            "  ".join(
                cell.ljust(width) if i < 6 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join(
            [*table, f"{self.distance}; forward and backward are multiply-adds a step"]
        )


def make_plan(comparison: Comparison, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Plan:
    """The plan for activations of these shapes, on the meta device.

    Parameters
    ----------
    comparison : Comparison
    xs, ys : sequence of Tensor
        As `target_sources` and `guide_sources` of `comparison` give them.
    """
    costs = dict(costs_of(comparison.distance, comparison.pairs, comparison.indices, xs, ys))
    seen: set[tuple[str, int]] = set()
    rows = []
    for p, (pair, (i, j)) in enumerate(zip(comparison.pairs, comparison.indices, strict=True)):
        x, y = xs[i], ys[j]
        layers = {("target", i): x, ("guide", j): y}
        kept = sum(layer.nbytes for key, layer in layers.items() if key not in seen)
        seen |= layers.keys()
        cost = costs.get(p)
        rows.append(
            PlanRow(
                target=pair.target,
                guide=pair.guide,
                per_token=pair.per_token,
                target_shape=tuple(x.shape),
                guide_shape=tuple(y.shape),
                target_dtype=str(x.dtype).removeprefix("torch."),
                guide_dtype=str(y.dtype).removeprefix("torch."),
                route=None if cost is None else cost.route,
                forward=None if cost is None else cost.forward,
                backward=None if cost is None else cost.backward,
                gram_bytes=None if cost is None else cost.gram_bytes,
                activation_bytes=kept,
            )
        )
    return Plan(comparison.distance.name, tuple(rows))


def costs_of(
    distance: Distance,
    pairs: Sequence[Pair],
    indices: Sequence[tuple[int, int]],
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
) -> Iterator[tuple[int, PairCost]]:
    """Position and cost of every pair whose distance knows it, call by call."""
    calls: dict[int | None, list[int]] = {}
    for p, (pair, (i, _)) in enumerate(zip(pairs, indices, strict=True)):
        calls.setdefault(xs[i].size(1) if pair.per_token else None, []).append(p)
    for tokens, call in calls.items():
        used = used_layers([indices[p] for p in call])
        costs = distance.costs(
            [xs[i].detach().requires_grad_() for i in used.left],
            [ys[j].detach() for j in used.right],
            pairs=used.pairs,
            per_token=tokens is not None,
        )
        if costs is not None:
            yield from zip(call, costs, strict=True)


def _cells(row: PlanRow) -> list[str]:
    dtypes = dict.fromkeys((row.target_dtype, row.guide_dtype))
    return [
        row.target,
        row.guide,
        str(row.target_shape),
        str(row.guide_shape),
        "/".join(dtypes),
        (row.route or "-") + (", per token" if row.per_token else ""),
        *_costs(asdict(row)),
    ]


def _costs(row: dict[str, Any]) -> list[str]:
    units = {"forward": "", "backward": "", "gram_bytes": "B", "activation_bytes": "B"}
    return [_with_prefix(row[name], unit) for name, unit in units.items()]


def _with_prefix(value: int | None, unit: str) -> str:
    """Three digits with an SI prefix."""
    if value is None:
        return "-"
    scaled, prefixes = float(value), iter(["", "k", "M", "G", "T", "P"])
    prefix = next(prefixes)
    while scaled >= 999.5:
        scaled, prefix = scaled / 1000, next(prefixes)
    return f"{scaled:.3g} {prefix}{unit}".rstrip()
