"""A result as a picture: ratios over samples and over pairs, and steps in processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyguide.bench import figure as figures


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw time and memory relative to unguided training, and steps in processes, as a PNG.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    figure = figures.new(9, 7)
    ((of_samples, of_memory), (of_pairs, of_processes)) = figure.subplots(2, 2)
    _draw_times(of_samples, curves(result, "samples", "n", "time_ratio"))
    _draw_times(of_pairs, curves(result, "pairs", "pairs", "time_ratio"))
    for label, points in curves(result, "samples", "n", "memory_ratio").items():
        of_memory.plot(*zip(*points, strict=True), marker="o", ms=4, label=label)
        _label_ticks(of_memory, [n for n, _ in points])
    _draw_processes(of_processes, result)
    of_samples.set(xlabel="n", ylabel="step time / unguided")
    of_memory.set(xlabel="n", ylabel="peak memory / unguided")
    of_pairs.set(xlabel="pairs", ylabel="step time / unguided")
    for axes in (of_samples, of_memory, of_pairs):
        axes.axhline(1, color="black", lw=0.9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figures.save(figure, path, result, "Guided against unguided training, medians and quartiles")


def _draw_times(axes: Any, found: dict[str, list[tuple[int, Any]]]) -> None:
    for label, points in found.items():
        xs = [x for x, _ in points]
        (line,) = axes.plot(xs, [t["median"] for _, t in points], marker="o", ms=4, label=label)
        low, high = ([t[q] for _, t in points] for q in ("q1", "q3"))
        axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.25)
        _label_ticks(axes, xs)


def _label_ticks(axes: Any, xs: Sequence[int]) -> None:
    """A logarithmic axis with the numbers that were measured, those of earlier lines too."""
    marked = set(axes.get_xticks()) if axes.get_xscale() == "log" else set()
    axes.set_xscale("log")
    ticks = sorted(marked | set(xs))
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)


def _draw_processes(axes: Any, result: dict[str, Any]) -> None:
    """Bars of seconds a step, of the largest batch."""
    entries = [e for e in result["settings"].values() if e["group"] == "processes"]
    axes.set(xlabel="seconds a step, quartiles")
    if not entries:
        return
    entry = max(entries, key=lambda entry: entry["n"])
    rows = [row for row in entry["rows"] if "seconds" in row]
    for y, row in enumerate(rows):
        seconds = row["seconds"]
        error = [[seconds["median"] - seconds["q1"]], [seconds["q3"] - seconds["median"]]]
        color = "#8c8c8c" if row["candidate"] == row["compared_with"] else "#0b6e4f"
        axes.barh(y, seconds["median"], xerr=error, color=color, capsize=2)
    axes.set(yticks=range(len(rows)), yticklabels=[row["candidate"] for row in rows])
    axes.set_title(f"n = {entry['n']}, processes x threads", fontsize=9)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def curves(
    result: dict[str, Any], group: str, over: str, key: str
) -> dict[str, list[tuple[int, Any]]]:
    """Points (n or pairs, value of `key`) of each guided candidate, by its label."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for entry in result["settings"].values():
        if entry["group"] != group:
            continue
        for row in entry["rows"]:
            if key in row and row["candidate"] != row["compared_with"]:
                label = f"{entry['networks']}, {row['candidate']}"
                found.setdefault(label, []).append((entry[over], row[key]))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in found.items()}
