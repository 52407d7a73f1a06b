"""What guidance will compare, how and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyguide.distances import LinearCKA
from pyguide.guidance.comparison import Comparison
from pyguide.ops import feature_space, sample_space
from pyguide.ops.contract import result_dtype
from pyguide.ops.routes import Part, multiply_adds, split_by_route

__all__ = ["Plan", "PlanRow", "make_plan"]


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
    #: costs, for a distance other than linear CKA.
    route: str | None
    #: Multiply-adds, one in float64 counted twice.
    forward: int | None
    backward: int | None
    #: Bytes of Gram matrices or products that are kept for backward.
    gram_bytes: int | None
    #: Bytes of the activations that are kept for backward.
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
    costs = dict(_costs_of(comparison, xs, ys))
    seen: set[tuple[str, int]] = set()
    rows = []
    for p, (pair, (i, j)) in enumerate(zip(comparison.pairs, comparison.indices, strict=True)):
        x, y = xs[i], ys[j]
        layers = {("target", i): x, ("guide", j): y}
        kept = sum(layer.nbytes for key, layer in layers.items() if key not in seen)
        seen |= layers.keys()
        route, forward, backward, gram_bytes = costs.get(p, (None, None, None, None))
        rows.append(
            PlanRow(
                target=pair.target,
                guide=pair.guide,
                per_token=pair.per_token,
                target_shape=tuple(x.shape),
                guide_shape=tuple(y.shape),
                target_dtype=str(x.dtype).removeprefix("torch."),
                guide_dtype=str(y.dtype).removeprefix("torch."),
                route=route,
                forward=forward,
                backward=backward,
                gram_bytes=gram_bytes,
                activation_bytes=kept,
            )
        )
    return Plan(comparison.distance.name, tuple(rows))


Cost = tuple[str, int, int, int]  # route, multiply-adds of forward and backward, bytes


def _costs_of(
    comparison: Comparison, xs: Sequence[Tensor], ys: Sequence[Tensor]
) -> Iterator[tuple[int, Cost]]:
    """Position and cost of every pair of a linear CKA, call by call."""
    if not isinstance(comparison.distance, LinearCKA):
        return
    calls: dict[int | None, list[int]] = {}
    for p, (pair, (i, _)) in enumerate(zip(comparison.pairs, comparison.indices, strict=True)):
        calls.setdefault(xs[i].size(1) if pair.per_token else None, []).append(p)
    for tokens, pairs in calls.items():
        used = [comparison.indices[p] for p in pairs]
        left, right = (list(dict.fromkeys(side)) for side in zip(*used, strict=True))
        layers = [xs[i].detach().requires_grad_() for i in left] + [ys[j] for j in right]
        indices = [(left.index(i), len(left) + right.index(j)) for i, j in used]
        debiased = comparison.distance.debiased
        for part in split_by_route(layers, indices, "auto", debiased, tokens or 1):
            costs = _part_costs(part, [layers[i] for i in part.layers], debiased, tokens)
            yield from zip((pairs[k] for k in part.positions), costs, strict=True)


def _part_costs(
    part: Part, layers: list[Tensor], debiased: bool, tokens: int | None
) -> Iterator[Cost]:
    """What each pair adds to the cost of those before it."""
    per_token = tokens is not None
    route = feature_space if part.in_feature_space else sample_space
    dtype = result_dtype(layers)
    before = (0, 0, 0)
    for count in range(1, len(part.pairs) + 1):
        used = list(dict.fromkeys(i for pair in part.pairs[:count] for i in pair))
        some = [layers[i] for i in used]
        pairs = [(used.index(i), used.index(j)) for i, j in part.pairs[:count]]
        forward, backward = multiply_adds(some, pairs, debiased, part.in_feature_space, tokens or 1)
        left, right = (list(side) for side in zip(*pairs, strict=True))
        # In the type of all layers' results, whatever the first ones' would be; on the CPU, where
        # memory that is not written costs nothing, since a plan needs no device's backend.
        shapes = [torch.empty_like(x, dtype=dtype, device="cpu") for x in some]
        saved = route.fake_saved(shapes, left, right, per_token)
        after = (
            forward * (tokens or 1),
            backward * (tokens or 1),
            sum(tensor.nbytes for tensor in saved),
        )
        new = tuple(a - b for a, b in zip(after, before, strict=True))
        yield ("feature" if part.in_feature_space else "sample", new[0], new[1], new[2])
        before = after


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
