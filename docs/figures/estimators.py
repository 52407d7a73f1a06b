"""Biased and debiased CKA over batch size and width: writes estimators.png and estimators.md.

Run as: python docs/figures/estimators.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import pyguide

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent
SAMPLES = [16, 32, 64, 128, 256, 512, 1024]
WIDTHS = [64, 512, 4096, 32768]
DRAWS = 10
SIGNALS, RELATED_WIDTH, STRENGTH = 20, 512, 0.5

Layers = tuple[Tensor, Tensor]


def independent(d: int) -> Callable[[int], Layers]:
    """Layers of d Gaussian features that have nothing to do with each other."""
    return lambda n: (torch.randn(n, d), torch.randn(n, d))


def related(mixing: Layers) -> Callable[[int], Layers]:
    """Layers of unit noise around signals that both contain."""

    def draw(n: int) -> Layers:
        signals = torch.randn(n, SIGNALS)
        x, y = (signals @ m + torch.randn(n, RELATED_WIDTH) for m in mixing)
        return x, y

    return draw


def related_mixing() -> Layers:
    """How the signals enter the features of the two related layers."""
    torch.manual_seed(0)
    scale = (STRENGTH / SIGNALS) ** 0.5
    x, y = (scale * torch.randn(SIGNALS, RELATED_WIDTH) for _ in range(2))
    return x, y


def population_cka(mixing: Layers) -> float:
    """What CKA of ``related`` layers is with endless samples, from their covariances."""
    a, b = (m.double() for m in mixing)
    noise = torch.eye(RELATED_WIDTH, dtype=torch.float64)
    return ((a.T @ b).square().sum() / ((a.T @ a + noise).norm() * (b.T @ b + noise).norm())).item()


def estimates(draw: Callable[[int], Layers], n: int) -> Tensor:
    """(2, DRAWS): biased and debiased CKA of fresh layers of n samples."""
    pairs = [draw(n) for _ in range(DRAWS)]
    return torch.stack(
        [
            torch.stack([pyguide.cka(x, y, debiased=debiased) for x, y in pairs])
            for debiased in (False, True)
        ]
    )


def independent_estimates(n: int, d: int) -> Tensor:
    torch.manual_seed(n * d)
    return estimates(independent(d), n)


def table(values: dict[tuple[int, int], Tensor]) -> str:
    """Mean of biased CKA, and mean ± standard deviation of debiased, of independent layers."""
    head = " | ".join(f"d = {d}" for d in WIDTHS)
    lines = [f"| n | {head} |", "|---" * (len(WIDTHS) + 1) + "|"]
    for n in SAMPLES:
        cells = []
        for d in WIDTHS:
            biased, debiased = values[n, d]
            cells.append(f"{biased.mean():.2f} / {debiased.mean():.2f} ± {debiased.std():.2f}")
        lines.append(f"| {n} | {' | '.join(cells)} |".replace("-0.00 ", "0.00 "))
    return "\n".join(lines) + "\n"


def plot(values: dict[tuple[int, int], Tensor], path: Path) -> None:
    """Independent layers on the left, related ones on the right; bands are one deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for d, color in zip(WIDTHS, ["#009E73", "#0072B2", "#D55E00", "#555555"], strict=True):
        _bands(left, torch.stack([values[n, d] for n in SAMPLES], dim=1), color, f"d = {d}")
    left.axhline(0, color="black", lw=0.8, ls=":", label="true value: 0")
    left.set(title="independent layers", ylabel="CKA")

    mixing = related_mixing()
    truth = population_cka(mixing)
    of_related = [estimates(related(mixing), n) for n in SAMPLES]
    _bands(right, torch.stack(of_related, dim=1), "#0072B2", f"d = {RELATED_WIDTH}")
    right.axhline(truth, color="black", lw=0.8, ls=":", label=f"true value: {truth:.2f}")
    right.set(title=f"layers with {SIGNALS} common signals")

    right.plot([], [], "-", color="black", label="biased")
    right.plot([], [], "--", color="black", label="debiased")
    for axes in (left, right):
        axes.set(xlabel="n, samples in the batch", xscale="log")
        axes.set_xticks(SAMPLES, SAMPLES)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=100)


def _bands(axes: Axes, values: Tensor, color: str, label: str) -> None:
    """Biased solid, debiased dashed, of (2, len(SAMPLES), DRAWS)."""
    for estimator, style, name in zip(values, ("-", "--"), (label, None), strict=True):
        mean, deviation = estimator.mean(dim=1), estimator.std(dim=1)
        axes.plot(SAMPLES, mean, style, color=color, label=name)
        axes.fill_between(SAMPLES, mean - deviation, mean + deviation, color=color, alpha=0.15)


def main() -> None:
    values = {(n, d): independent_estimates(n, d) for n in SAMPLES for d in WIDTHS}
    (FOLDER / "estimators.md").write_text(table(values), encoding="utf-8")
    plot(values, FOLDER / "estimators.png")


if __name__ == "__main__":
    main()
