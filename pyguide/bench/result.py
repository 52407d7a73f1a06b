"""The JSON of a benchmark: figures from samples, and continuing an interrupted run."""

from __future__ import annotations

import statistics
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyguide.bench.aims import reached
from pyguide.bench.ceilings import Ceilings
from pyguide.bench.device import CPU
from pyguide.bench.machine import describe
from pyguide.errors import UserError
from pyguide.files import read_json, write_json, writing

__all__ = ["FORMAT", "load", "new", "resume", "save", "spread", "summarize"]

#: Of the JSON's layout; raised when a reader must change.
FORMAT = 1

#: Parts of a result that must agree before timings are joined.
_IDENTITY = ("format", "quick", "options", "machine", "versions", "source")


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles, least and largest."""
    q1, median, q3 = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": median, "q1": q1, "q3": q3, "min": min(values), "max": max(values)}


def summarize(result: dict[str, Any]) -> None:
    """Fill in what follows from the samples: spreads, ratios, fractions of the ceiling."""
    rates = Ceilings(result["ceilings"]["samples"])
    result["ceilings"]["bandwidth"] = rates.bandwidth
    for entry in result["workloads"]:
        entry["ceiling_flops"] = rates.flops(entry["unit"])
        entry["ceiling_seconds"] = rates.seconds(
            entry["unit"], entry["unit_flop"], entry["least_bytes"]
        )
        samples = {r["candidate"]: r["samples"] for r in entry["rows"] if r["status"] == "timed"}
        for row in entry["rows"]:
            if row["status"] == "timed":
                _summarize_row(row, entry["ceiling_seconds"], samples)
    if result["options"]["device"] != "cpu":
        result["aims"] = reached(result)


def _summarize_row(row: dict[str, Any], ceiling: float, samples: dict[str, list[float]]) -> None:
    row["seconds"] = spread(row["samples"])
    row["of_ceiling"] = ceiling / row["seconds"]["median"]
    if "host_samples" in row:
        row["host_seconds"] = spread(row["host_samples"])
    if row["compiles"]:
        row["compile_seconds"] = row["first_call_seconds"] - row["seconds"]["median"]
    for base in ("pyguide", "eager"):
        if base in samples:
            row[f"ratio_to_{base}"] = spread(_ratios(row["samples"], samples[base]))


def _ratios(samples: list[float], base: list[float]) -> list[float]:
    """Round by round; where one was called once, that call with every sample of the other."""
    if len(samples) == 1:
        samples = samples * len(base)
    if len(base) == 1:
        base = base * len(samples)
    return [s / b for s, b in zip(samples, base, strict=True)]


def new(device: CPU, commit: str | None, options: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A result before anything is measured: when, with which options, where and with what.

    Parameters
    ----------
    commit : str, optional
        The source's, where git does not tell.
    options : dict
        What must agree before runs are joined.
    **parts
        What is the benchmark's own.
    """
    return {
        "format": FORMAT,
        "quick": device.quick,
        "finished": False,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": options,
        **describe(device, commit),
        **parts,
    }


def save(path: Path | None, result: dict[str, Any]) -> None:
    """Write atomically, or not at all without a path.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    if path is not None:
        with writing(path):
            write_json(path, result)


def load(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises
    ------
    UserError
        If it is missing or is not a result of this version.
    """
    try:
        result = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise UserError(f"{path}: not a result of pyguide bench of format {FORMAT}")
    return result


def resume(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The interrupted result at ``path``, if it is of the same run as ``new``.

    Raises
    ------
    UserError
        Naming what differs.
    """
    old = load(path)
    for part in _IDENTITY:
        differences = _differences(part, old.get(part), new[part])
        if differences:
            raise UserError(
                f"{path}: cannot resume, since {differences[0]}; choose another --out, "
                "or run with what the file was made with"
            )
    return old


def _differences(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = [_differences(f"{name} {key}", old.get(key), new.get(key)) for key in keys]
        return [difference for group in found for difference in group]
    return [] if old == new else [f"{name} was {old} and is {new}"]
