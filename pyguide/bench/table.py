"""A workload's rows as text."""

from __future__ import annotations

from typing import Any

__all__ = ["table"]

_HEAD = (
    "candidate",
    "median",
    "quartiles",
    "/ pyguide",
    "quartiles",
    "peak memory",
    "of ceiling",
    "error",
    "first call",
    "host",
)


def table(result: dict[str, Any], entry: dict[str, Any]) -> str:
    """Title, ceiling and one line a candidate; times are of one call."""
    quick = "  (quick: not a result)" if result["quick"] else ""
    how = ""
    if result["options"]["device"] != "cpu":
        how = f", {entry['arithmetic']}, {entry['cache']} L2"
    flop, size = entry["unit_flop"] / 1e9, entry["least_bytes"] / 1e9
    bandwidth = result["ceilings"]["bandwidth"]
    lines = [
        f"{entry['workload']}, n = {entry['n']}{how}: {entry['description']}{quick}",
        f"least work {flop:.3g} GFLOP and {size:.3g} GB: {_time(entry['ceiling_seconds'])} at "
        f"{entry['ceiling_flops'] / 1e9:.0f} GFLOP/s ({entry['unit']}) and "
        f"{bandwidth / 1e9:.1f} GB/s",
    ]
    timed = [_HEAD, *(_cells(row) for row in entry["rows"] if row["status"] == "timed")]
    widths = [max(len(row[i]) for row in timed) for i in range(len(_HEAD))]
    for cells in timed:
        name, *others = cells
        aligned = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", name.ljust(widths[0]), *aligned]))
    for row in entry["rows"]:
        if row["status"] != "timed":
            lines.append(f"  {row['candidate']}: {row['status']}: {row['reason']}")
    return "\n".join([*lines, *_notes(entry["rows"])]) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    seconds, ratio = row["seconds"], row.get("ratio_to_pyguide")
    memory = row["memory"]
    errors = [e for e in row["error"].values() if e is not None]
    worst = max(map(float, errors), key=lambda e: (e != e, e))
    return (
        row["candidate"],
        _time(seconds["median"]),
        f"{_time(seconds['q1'])} - {_time(seconds['q3'])}",
        f"{ratio['median']:.2f}" if ratio else "-",
        f"{ratio['q1']:.2f} - {ratio['q3']:.2f}" if ratio else "-",
        f"{memory['peak'] / 2**20:.1f} MiB" if isinstance(memory, dict) else "n/a",
        f"{100 * row['of_ceiling']:.1f} %",
        f"{worst:.0e}{' !' if row['wrong'] else ''}",
        _time(row["first_call_seconds"]),
        _time(row["host_seconds"]["median"]) if "host_seconds" in row else "-",
    )


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader of the table must know."""
    notes = []
    for row in rows:
        if row["status"] != "timed":
            continue
        if row["wrong"]:
            notes.append(f"  ! {row['candidate']}: further from the exact result than allowed")
        if len(row["samples"]) == 1:
            notes.append(f"  {row['candidate']}: one call only, longer than the budget")
        if isinstance(row["memory"], str):
            notes.append(f"  {row['candidate']}: memory {row['memory']}")
    return notes


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds:.0f} s"
    return f"{seconds / 1e-6:.3g} us"
