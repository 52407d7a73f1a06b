"""What the CUDA kernels are meant to reach on an H100 or H200, and what a run reached."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["aims_table", "reached"]

Entry = dict[str, Any]


@dataclass(frozen=True)
class Aim:
    """A figure that is to reach a goal.

    Attributes
    ----------
    applies : callable
        Whether the aim is about an entry of a result.
    measure : callable
        The figure of an entry, given the result too; None where it was not measured.
    least : bool
        Whether the goal is the least that is wanted, or the most.
    """

    name: str
    goal: float
    unit: str
    applies: Callable[[Entry], bool]
    measure: Callable[[dict[str, Any], Entry], float | None]
    least: bool = True

    def rows(self, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The aim beside what was reached, for every entry that it is about."""
        for entry in filter(self.applies, result["workloads"]):
            figure = self.measure(result, entry)
            meets = operator.ge if self.least else operator.le
            yield {
                "aim": self.name,
                "goal": self.goal,
                "unit": self.unit,
                "least": self.least,
                **{key: entry[key] for key in ("workload", "n", "arithmetic", "cache")},
                "reached": figure,
                "met": None if figure is None else bool(meets(figure, self.goal)),
            }


def reached(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every aim with every entry that it is about."""
    return [row for aim in AIMS for row in aim.rows(result)]


def aims_table(result: dict[str, Any]) -> str:
    """One line an aim and entry; ``no`` marks what was missed."""
    quick = "  (quick: not a result)" if result["quick"] else ""
    lines = [f"{'aim':<31} {'goal':>10}  {'reached':>9}{quick}"]
    for row in result["aims"]:
        figure = "-" if row["reached"] is None else f"{row['reached']:.4g}"
        met = {None: "", True: "yes", False: "no"}[row["met"]]
        sign = ">=" if row["least"] else "<="
        where = f"{row['workload']} n = {row['n']} {row['arithmetic']} {row['cache']}"
        goal = f"{sign} {row['goal']:g} {row['unit']}"
        lines.append(f"{row['aim']:<31} {goal:>10}  {figure:>9} {met:<3}  {where}")
    return "\n".join(lines)


def _row(entry: Entry, candidate: str) -> dict[str, Any] | None:
    """A candidate's row, if it was timed and right."""
    for row in entry["rows"]:
        if row["candidate"] == candidate and row["status"] == "timed" and not row["wrong"]:
            return row
    return None


def _of_bandwidth(bytes_of: str) -> Callable[[dict[str, Any], Entry], float | None]:
    """Percent of a copy's bandwidth at which pyguide moves the entry's bytes."""

    def measure(result: dict[str, Any], entry: Entry) -> float | None:
        ours = _row(entry, "pyguide")
        if ours is None:
            return None
        return 100 * entry[bytes_of] / ours["seconds"]["median"] / result["ceilings"]["bandwidth"]

    return measure


def _of_unit(result: dict[str, Any], entry: Entry) -> float | None:
    """Percent of its unit's measured rate at which pyguide multiplies."""
    ours = _row(entry, "pyguide")
    if ours is None:
        return None
    return 100 * entry["unit_flop"] / ours["seconds"]["median"] / entry["ceiling_flops"]


def _times(*bases: str) -> Callable[[dict[str, Any], Entry], float | None]:
    """How often pyguide runs in the time of the fastest of some candidates."""

    def measure(result: dict[str, Any], entry: Entry) -> float | None:
        rows = [row for row in (_row(entry, base) for base in bases) if row is not None]
        if not rows or _row(entry, "pyguide") is None:
            return None
        return min(row["ratio_to_pyguide"]["median"] for row in rows)

    return measure


def _host(candidate: str) -> Callable[[dict[str, Any], Entry], float | None]:
    """Microseconds until a call returns."""

    def measure(result: dict[str, Any], entry: Entry) -> float | None:
        row = _row(entry, candidate)
        if row is None or "host_seconds" not in row:
            return None
        return row["host_seconds"]["median"] * 1e6

    return measure


def _large(kind: str, bounds: dict[str, int]) -> Callable[[Entry], bool]:
    """Entries of at least 1 GiB with a cold L2, n up to a bound for each arithmetic."""

    def applies(entry: Entry) -> bool:
        named = entry["workload"] == f"{kind}-large" and entry["cache"] != "warm"
        return named and entry["n"] <= bounds.get(entry["arithmetic"], 0)

    return applies


def _loss(applies: Callable[[Entry], bool]) -> Callable[[Entry], bool]:
    return lambda entry: entry["workload"] in ("conv-fcn", "conv-conv") and applies(entry)


_ONE_READ = {"bf16": 128, "high": 128, "medium": 128, "highest": 64}
_any_gram = _large("gram", dict.fromkeys(_ONE_READ, 1 << 30))
_one_read = _large("gram", _ONE_READ)
_fast_apply = _large("apply", {"bf16": 256, "high": 128})


def _gram_bf16_256(entry: Entry) -> bool:
    return _any_gram(entry) and entry["n"] == 256 and entry["arithmetic"] == "bf16"


def _gram_by_rate(entry: Entry) -> bool:
    return _any_gram(entry) and not _one_read(entry) and not _gram_bf16_256(entry)


def _as_exact_as_cublas(entry: Entry) -> bool:
    # Where torch's setting is medium cuBLAS multiplies in TF32, pyguide in bfloat16.
    return _any_gram(entry) and entry["n"] >= 1024 and entry["arithmetic"] != "medium"


def _small_n(entry: Entry) -> bool:
    return entry["n"] <= 256


def _large_n_bf16(entry: Entry) -> bool:
    return entry["n"] >= 1024 and entry["arithmetic"] == "bf16"


def _small_pairs(entry: Entry) -> bool:
    return entry["workload"] == "small-pairs" and entry["cache"] == "warm"


_X_ONCE, _ALL = _of_bandwidth("input_bytes"), _of_bandwidth("least_bytes")

AIMS = [
    Aim("Gram, of copy bandwidth", 80, "%", _one_read, _X_ONCE),
    Aim("Gram, of copy bandwidth", 60, "%", _gram_bf16_256, _X_ONCE),
    Aim("Gram, of its instructions' rate", 75, "%", _gram_by_rate, _of_unit),
    Aim(
        "Gram, times cuBLAS's speed",
        1.25,
        "x",
        _as_exact_as_cublas,
        _times("mm"),
    ),
    Aim("apply, of copy bandwidth", 75, "%", _fast_apply, _ALL),
    Aim("loss, times eager's speed", 3, "x", _loss(_small_n), _times("eager", "eager-bf16")),
    Aim("loss, times compile's speed", 2, "x", _loss(_small_n), _times("compile", "compile-bf16")),
    Aim("loss, times official's speed", 10, "x", _loss(_small_n), _times("official")),
    Aim("loss, times eager's speed", 1.3, "x", _loss(_large_n_bf16), _times("eager", "eager-bf16")),
    Aim("50 pairs, host time", 700, "us", _small_pairs, _host("pyguide"), least=False),
    Aim("50 pairs, host time of a replay", 30, "us", _small_pairs, _host("pyguide-graph"), False),
]
