"""A result as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyguide.bench import figure as figures
from pyguide.bench.candidates import CANDIDATES
from pyguide.errors import UserError

__all__ = ["plot", "speeds"]

_TALLEST = 30  # inches

_COLORS = {
    "pyguide": "#0b6e4f",
    "pyguide-graph": "#5fb58f",
    "eager-graph": "#6b6b6b",
    "compile": "#4a7fb5",
    "compile-graph": "#2a4d73",
    "compile-bf16": "#7a5fb5",
    "mm": "#a8764a",
    "eager-bmm": "#9cc1e0",
    "eager-feature": "#b9a7d6",
    "eager-bf16": "#d6a7c0",
    "official": "#c0504d",
    "pytorch-cka": "#e0a030",
    "lightly-formula": "#8c8c3a",
}


def speeds(result: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Speed relative to eager by workload and candidate: least, median and largest.

    A workload is taken at n = 256 if it ran there, else at its first n; on a GPU with a cold L2.
    A candidate whose result was wrong is left out: its speed is no comparison.
    """

    def preference(entry: dict[str, Any]) -> tuple[bool, bool]:
        return entry["n"] == 256, entry.get("cache") == "cold"

    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in result["workloads"]:
        key = entry["workload"], entry.get("arithmetic", "highest")
        if key not in chosen or preference(entry) > preference(chosen[key]):
            chosen[key] = entry
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for (_, arithmetic), entry in chosen.items():
        bars = {}
        for row in entry["rows"]:
            ratio = row.get("ratio_to_eager")
            if ratio is not None and row["candidate"] != "eager" and not row["wrong"]:
                bars[row["candidate"]] = (1 / ratio["max"], 1 / ratio["median"], 1 / ratio["min"])
        if bars:
            how = "" if arithmetic == "highest" else f", {arithmetic}"
            found[f"{entry['workload']}\nn = {entry['n']}{how}"] = bars
    return found


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw speeds relative to eager torch as a PNG, about 1000 pixels wide.

    Raises
    ------
    UserError
        If no workload has eager and another candidate, or the file cannot be written.
    """
    found = speeds(result)
    if not found:
        raise UserError("nothing to draw: no workload was timed with eager and another candidate")
    names = [c.name for c in CANDIDATES if any(c.name in bars for bars in found.values())]
    count = sum(len(bars) + 1 for bars in found.values())
    figure = figures.new(9, min(1.6 + 0.24 * count, _TALLEST))
    axes = figure.subplots()
    ticks = _draw_bars(axes, found)
    axes.axvline(1, color="black", lw=0.9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_tick)
    axes.xaxis.set_minor_formatter(_tick)
    axes.set(yticks=ticks, yticklabels=list(found), xlabel="speed relative to eager torch")
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=_COLORS[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figures.save(
        figure,
        path,
        result,
        "Speed relative to eager torch, median and range over the rounds",
        how=", cold L2" if "gpu" in result["machine"] else "",
    )


def _draw_bars(axes: Any, found: dict[str, dict[str, tuple[float, float, float]]]) -> list[float]:
    """Draw each workload's bars from the top; return the middle of each group."""
    ticks, y = [], 0.0
    for bars in found.values():
        ticks.append(y + (len(bars) - 1) / 2)
        for name, (low, median, high) in bars.items():
            axes.barh(y, median - 1, left=1, color=_COLORS[name], height=0.85)
            error = [[median - low], [high - median]]
            axes.errorbar(median, y, xerr=error, color="black", lw=0.9, capsize=2)
            y += 1
        y += 1
    return ticks


def _tick(value: float, _: float) -> str:
    """Label 1, 2 and 5 times a power of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""
