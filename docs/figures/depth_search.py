"""The search over depths and learning rates: writes depth_search.png and depth_search.md.

Reads bench/results/deep_fcn_search.json. Run as: python docs/figures/depth_search.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "bench" / "results" / "deep_fcn_search.json"
ARMS = {
    "none": ("no guide", "#555555"),
    "trained": ("trained guide", "#0072B2"),
    "untrained": ("untrained guide", "#D55E00"),
}


def table(search: dict[str, Any]) -> str:
    """Lowest validation loss / accuracy in % (learning rate) of each arm at its best rate."""
    labels = " | ".join(label for label, _ in ARMS.values())
    lines = [f"| depth | {labels} |", "|---" * (len(ARMS) + 1) + "|"]
    for depth in search["config"]["depths"]:
        best = [search["best"][f"{arm} depth {depth}"] for arm in ARMS]
        cells = [
            f"{run['val_loss']:.3f} / {100 * run['val_accuracy']:.1f} ({run['lr']:g})"
            for run in best
        ]
        lines.append(f"| {depth} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(search: dict[str, Any], path: Path) -> None:
    """Lowest validation loss over the learning rate, one panel a depth."""
    from matplotlib.figure import Figure

    depths = search["config"]["depths"]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(depths), sharey=True)
    for axes, depth in zip(panels, depths, strict=True):
        for arm, (label, color) in ARMS.items():
            runs = [r for r in search["runs"] if (r["arm"], r["depth"]) == (arm, depth)]
            runs.sort(key=lambda run: run["lr"])
            rates, losses = ([run[key] for run in runs] for key in ("lr", "val_loss"))
            axes.plot(rates, losses, "o-", ms=4, color=color, label=label)
        axes.set(title=f"{depth} layers", xscale="log", xlabel="learning rate")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("lowest validation loss")
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    search = json.loads(RESULTS.read_text())
    (FOLDER / "depth_search.md").write_text(table(search), encoding="utf-8")
    plot(search, FOLDER / "depth_search.png")


if __name__ == "__main__":
    main()
