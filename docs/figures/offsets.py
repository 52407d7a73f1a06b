"""Debiased CKA of float32 features that are moved away from zero: writes offsets.md.

The libraries are those of bench/numerics.py (pytorch-cka takes part where it is installed), the
layers those with common signals of estimators.py. Run as: python docs/figures/offsets.py
"""

from __future__ import annotations

import runpy
from pathlib import Path

from torch import Tensor

from pyguide import reference

FOLDER = Path(__file__).parent
BENCH = runpy.run_path(str(FOLDER.parents[1] / "bench" / "numerics.py"))
ESTIMATORS = runpy.run_path(str(FOLDER / "estimators.py"))
N = 64


def layers() -> list[Tensor]:
    """Two layers (N, 512) of unit variance, in float64."""
    pair = ESTIMATORS["related"](ESTIMATORS["related_mixing"]())(N)
    return [layer.double() / (1 + ESTIMATORS["STRENGTH"]) ** 0.5 for layer in pair]


def rows() -> list[tuple[int, float, dict[str, float]]]:
    """Offset, value in float64 of the same rounded input, and value of each library."""
    found, pair = [], layers()
    for offset in BENCH["OFFSETS"]:
        x, y = ((layer + offset).float() for layer in pair)
        exact = reference.cka(x.double(), y.double(), debiased=True).item()
        values = {name: f(x, y).item() for name, f in BENCH["CANDIDATES"].items()}
        found.append((offset, exact, values))
    return found


def table() -> str:
    names = list(BENCH["CANDIDATES"])
    lines = [f"| offset | float64 | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for offset, exact, values in rows():
        cells = [f"{value:.5f}" for value in (exact, *values.values())]
        lines.append(f"| {offset} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    (FOLDER / "offsets.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
