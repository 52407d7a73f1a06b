"""What comparing a batch over W processes costs each: writes processes.md and processes.png.

Reads bench/results/processes_cpu.json. Run as: python docs/figures/processes.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "bench" / "results" / "processes_cpu.json"
SAMPLES = "256"
SHOWN = ("1", "2", "4", "8", "16", "32", "64", "128", "256", "512", "1024")
WAYS = {
    "pyguide": ("pyguide's choice", "#000000", "-"),
    "sample space": ("Gram matrices alone", "#0072B2", "--"),
    "feature space": ("d × d products alone", "#D55E00", "--"),
    "gathered": ("all samples on every process", "#999999", ":"),
}
_HEADS = ["W", "all_to_all", "all_reduce", "multiply-adds", "held", "pairs by d × d"]
_HEADS += ["Gram matrices alone: sent", "d × d alone: sent", "gathered: sent", "its multiply-adds"]


def tables(result: dict[str, Any]) -> str:
    """One table for each pair of networks."""
    return "\n".join(_table(entry) for entry in result["cases"].values())


def _table(entry: dict[str, Any]) -> str:
    lines = [f"{_title(entry)}, {len(entry['pairs'])} pairs:\n"]
    lines += [_row(_HEADS), "|---" * len(_HEADS) + "|"]
    for w in SHOWN:
        ways = entry["computed"][SAMPLES][w]
        own, gathered = ways["pyguide"], ways["gathered"]
        cells = [w, size(own["all_to_all"]), size(own["all_reduce"]), _count(own["multiply_adds"])]
        cells += [size(own["held"]), str(ways["pairs_in_feature_space"])]
        cells += [size(ways[way]["sent"]) for way in ("sample space", "feature space", "gathered")]
        lines.append(_row([*cells, _count(gathered["multiply_adds"])]))
    return "\n".join(lines) + "\n"


def _title(entry: dict[str, Any]) -> str:
    return entry["description"].split(": ", 1)[-1]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _scaled(count: int, units: tuple[str, ...]) -> str:
    power = max(len(str(count)) - 1, 0) // 3
    return f"{count / 1000**power:.3g} {units[power]}".rstrip()


def size(count: int) -> str:
    """Bytes, with a unit."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def _count(count: int) -> str:
    return _scaled(count, ("", "k", "M", "G", "T", "P"))


def plot(result: dict[str, Any], path: Path) -> None:
    """Bytes sent and held over W, a column for each pair of networks."""
    from matplotlib.figure import Figure

    cases = list(result["cases"].values())
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, len(cases), sharex=True, sharey="row")
    for column, entry in zip(panels.T, cases, strict=True):
        for axes, key in zip(column, ("sent", "held"), strict=True):
            for way, (label, color, style) in WAYS.items():
                points = [(int(w), entry["computed"][SAMPLES][w][way][key]) for w in SHOWN]
                w, values = zip(*((w, v) for w, v in points if v), strict=True)
                wide = 4 if way == "pyguide" else 1.5
                axes.plot(w, values, style, color=color, lw=wide, label=label, alpha=0.8)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set_title(_title(entry), fontsize="small")
        column[1].set_xlabel("processes W")
    for axes, key in zip(panels[:, 0], ("sent", "held"), strict=True):
        axes.set_ylabel(f"bytes {key} by a process")
    panels[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=80)


def main() -> None:
    result = json.loads(RESULTS.read_text())
    (FOLDER / "processes.md").write_text(tables(result), encoding="utf-8")
    plot(result, FOLDER / "processes.png")


if __name__ == "__main__":
    main()
