"""Summary, table and curves of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyguide.experiments.config import Config

__all__ = ["PAPER", "mean_and_error", "plot_curves", "summarize", "table"]

#: Deep FCN <- ResNet-18 on ImageNet, top-5 accuracy in percent: mean and standard error of
#: five seeds (arXiv 2410.20035).
PAPER = {"none": (1.65, 1.21), "trained": (7.50, 1.51), "untrained": (13.10, 0.72)}

_LABELS = {"none": "no guide", "trained": "trained guide", "untrained": "untrained guide"}
# Okabe & Ito's palette: told apart with any colour vision.
_COLORS = {"none": "#555555", "trained": "#0072B2", "untrained": "#D55E00"}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, ``std(ddof=1) / sqrt(n)``; None for a single value.

    Examples
    --------
    >>> from pyguide.experiments.report import mean_and_error
    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    >>> mean_and_error([1.0])
    (1.0, None)
    """
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def summarize(runs: Sequence[dict[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """Test accuracy by arm, and its difference to the arm "none" paired by seed.

    Parameters
    ----------
    runs : sequence of dict
        Records with ``arm``, ``seed`` and ``test_accuracy`` (a fraction).
    arms : sequence of str
        The arms in the order wanted; one without a run is left out.

    Returns
    -------
    dict
        ``"test_accuracy"`` and ``"difference_to_none"``, each by arm a dict of ``by_seed``,
        ``mean``, ``standard_error`` (None for one seed) and ``n``.
    """
    by_arm = {
        arm: {run["seed"]: run["test_accuracy"] for run in runs if run["arm"] == arm}
        for arm in arms
    }
    baseline = by_arm.get("none", {})
    differences = {
        arm: {seed: value - baseline[seed] for seed, value in seeds.items() if seed in baseline}
        for arm, seeds in by_arm.items()
        if arm != "none"
    }
    return {
        "test_accuracy": {arm: _statistics(seeds) for arm, seeds in by_arm.items() if seeds},
        "difference_to_none": {arm: _statistics(d) for arm, d in differences.items() if d},
    }


def _statistics(by_seed: dict[int, float]) -> dict[str, Any]:
    # In the order of the seeds: the last bits of a sum depend on the order of its terms.
    by_seed = dict(sorted(by_seed.items()))
    mean, error = mean_and_error(list(by_seed.values()))
    return {
        "by_seed": {str(seed): value for seed, value in by_seed.items()},
        "mean": mean,
        "standard_error": error,
        "n": len(by_seed),
    }


def table(config: Config, results: dict[str, Any]) -> str:
    """Markdown: measured accuracies beside the paper's, and what makes them differ.

    Parameters
    ----------
    config : Config
    results : dict
        With ``runs``, ``guides``, ``failed`` and the ``summary`` of :func:`summarize`.
    """
    summary, arms = results["summary"], config.arms
    accuracy, difference = summary["test_accuracy"], summary["difference_to_none"]

    def row(title: str, cells: dict[str, str]) -> list[str]:
        return [title, *(cells.get(arm, "–") for arm in arms)]

    rows = [
        row("", {arm: _LABELS[arm] for arm in arms}),
        row("MNIST-1D, test accuracy (%)", {a: _percent(s) for a, s in accuracy.items()}),
        row("paired difference to no guide", {a: _percent(s, "+") for a, s in difference.items()}),
        row("seeds", {a: str(s["n"]) for a, s in accuracy.items()}),
        row("learning rate", {a: f"{config.lr[a]:g}" for a in arms}),
        row(
            "paper: ImageNet, top-5 accuracy (%)",
            {arm: f"{mean:.2f} ± {error:.2f}" for arm, (mean, error) in PAPER.items()},
        ),
    ]
    lines = ["# Deep FCN", ""]
    if config.quick:
        lines += ["**A smoke run (`--quick`): these numbers say nothing about guidance.**", ""]
    lines += _markdown(rows)
    lines += [
        "",
        "Mean ± standard error over seeds. The paper's row (Deep FCN guided by a ResNet-18, "
        "5 seeds) has other data, another network and another metric: compare the order of the "
        "arms, not the numbers.",
        "",
        f"Target: {config.depth} Linear layers (output included) of width {config.width}, "
        f"{config.epochs} epochs of batch {config.batch_size}. Accuracy at each run's own epoch "
        "of lowest validation loss (the paper: of lowest seed-averaged loss).",
    ]
    if results["guides"]:
        guides = ", ".join(
            f"{100 * g['test_accuracy']:.1f} % (seed {g['seed']})"
            for g in sorted(results["guides"], key=lambda g: g["seed"])
        )
        lines += ["", f"Test accuracy of the trained guide: {guides}."]
    for key, reason in results["failed"].items():
        lines += ["", f"**Failed: {key}: {reason}**"]
    return "\n".join(lines) + "\n"


def _percent(statistics: dict[str, Any], sign: str = "") -> str:
    error = statistics["standard_error"]
    mean = f"{100 * statistics['mean']:{sign}.2f}"
    return mean if error is None else f"{mean} ± {100 * error:.2f}"


def _markdown(rows: list[list[str]]) -> list[str]:
    """A pipe table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def plot_curves(config: Config, metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy by epoch, training dashed and validation solid, as a PNG.

    A line is the mean over seeds, its band their range.

    Parameters
    ----------
    config : Config
    metrics : sequence of dict
        Records of the finished runs, by epoch in each.
    path : Path
        File to write.
    """
    # The object interface: no display, and no state shared with a caller's pyplot.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for arm in config.arms:
        for axes, name, style, scale in [
            (loss, "task_loss", "--", 1),
            (loss, "val_loss", "-", 1),
            (accuracy, "train_accuracy", "--", 100),
            (accuracy, "val_accuracy", "-", 100),
        ]:
            curves = scale * _by_epoch(metrics, arm, name)
            if curves.size:
                _plot_band(axes, curves, _COLORS[arm], style)
    loss.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    loss.yaxis.set_major_formatter(_log_tick)
    loss.yaxis.set_minor_formatter(_log_tick)
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, None))
    accuracy.axhline(10, color="black", lw=0.8, ls=":")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=_COLORS[arm], label=_LABELS[arm]) for arm in config.arms]
    for style, label in [("--", "training"), ("-", "validation")]:
        handles.append(Line2D([], [], color="black", ls=style, label=label))
    handles.append(Line2D([], [], color="black", lw=0.8, ls=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    n = len(config.seeds)
    seeds = "1 seed" if n == 1 else f"mean and range of {n} seeds"
    smoke = " (a smoke run)" if config.quick else ""
    figure.suptitle(f"Deep FCN of {config.depth} layers on MNIST-1D, {seeds}{smoke}")
    figure.savefig(path, dpi=150, format="png")


def _plot_band(axes: Any, curves: np.ndarray, color: str, style: str) -> None:
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.plot(epochs, curves.mean(axis=0), style, color=color, lw=1.6)
    if len(curves) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)


def _log_tick(value: float, _: int) -> str:
    """Label 1, 2 and 5 times a power of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _by_epoch(metrics: Sequence[dict[str, Any]], arm: str, name: str) -> np.ndarray:
    """(runs, epochs) of one metric of one arm, up to the last epoch that all runs have."""
    by_run: dict[str, list[float]] = {}
    for record in metrics:
        if record.get("arm") == arm:
            by_run.setdefault(record["key"], []).append(record.get(name, math.nan))
    return np.array(list(zip(*(by_run[key] for key in sorted(by_run)), strict=False))).T
