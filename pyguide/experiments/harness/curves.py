"""Loss and metric by epoch, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.experiment import Arm, Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_epoch", "plot_bands", "plot_curves", "plot_differences"]

# Okabe & Ito's palette: told apart with any colour vision. The first is the baseline's.
_COLORS = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Of the largest value to the smallest, from which an axis is logarithmic.
_LEAST_RATIO = 5


def plot_curves(
    setting: Setting[Any],
    config: Config,
    arms: Sequence[Arm],
    runs: Sequence[Mapping[str, Any]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """Draw training dashed and validation solid, as a PNG.

    A line is the mean over seeds, its band their range.

    Parameters
    ----------
    runs : sequence of dict
        The finished final runs.
    records : dict
        Records of every epoch by the runs' keys.
    path : Path
        File to write.
    """
    import matplotlib

    # The object interface: no display, and no state shared with a caller's pyplot.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    metric = setting.metric
    figure = Figure(figsize=(11, 5), layout="constrained")
    loss, score = figure.subplots(1, 2)
    colors: Sequence[Any] = _COLORS
    if len(arms) > len(colors):
        colors = list(matplotlib.colormaps["turbo"].resampled(len(arms))(range(len(arms))))
    handles = []
    for index, arm in enumerate(arms):
        color = colors[index]
        handles.append(Line2D([], [], color=color, label=arm.label))
        for axes, name, style, scale in [
            (loss, "task_loss", "--", 1),
            (loss, "val_loss", "-", 1),
            (score, f"train_{metric.key}", "--", metric.scale),
            (score, f"val_{metric.key}", "-", metric.scale),
        ]:
            curves = by_epoch(runs, records, arm.name, name)
            if curves:
                epochs = range(1, len(curves[0]) + 1)
                scaled = [[scale * value for value in curve] for curve in curves]
                _plot_band(axes, epochs, scaled, color, style)
    loss.set(xlabel="epoch", ylabel="loss")
    _scale_by_ratio(loss)
    score.set(xlabel="epoch", ylabel=metric.title)
    if metric.higher_is_better:
        score.set_ylim(0, None)
    else:
        _scale_by_ratio(score)
    for axes in (loss, score):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for style, label in [("--", "training"), ("-", "validation")]:
        handles.append(Line2D([], [], color="black", ls=style, label=label))
    if setting.chance is not None:
        score.axhline(metric.scale * setting.chance, color="black", lw=0.8, ls=":")
        handles.append(Line2D([], [], color="black", lw=0.8, ls=":", label="chance"))
    columns = min(len(handles), 6)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    n = len(config.seeds)
    seeds = "1 seed" if n == 1 else f"mean and range of {n} seeds"
    smoke = " (a smoke run)" if config.quick else ""
    figure.suptitle(f"{setting.title}, {seeds}{smoke}")
    figure.savefig(path, dpi=150, format="png")


def plot_differences(
    setting: Setting[Any],
    config: Config,
    arms: Sequence[Arm],
    summary: Mapping[str, Any],
    path: Path,
) -> None:
    """Draw each arm's difference to its baseline with two standard errors, as a PNG.

    Parameters
    ----------
    summary : dict
        Of :func:`~pyguide.experiments.harness.statistics.summarize`.
    path : Path
        File to write.
    """
    from matplotlib.figure import Figure

    metric, labels = setting.metric, {arm.name: arm.label for arm in arms}
    shown = [arm for arm in arms if "difference" in summary.get(arm.name, {})]
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, arm in enumerate(shown):
        found = summary[arm.name]["difference"]
        error = found["standard_error"]
        axes.errorbar(
            metric.scale * found["mean"],
            row,
            xerr=None if error is None else 2 * metric.scale * error,
            fmt="o",
            color=_COLORS[1],
        )
    names = [f"{arm.label} – {labels[arm.baseline or '']}" for arm in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(0, color="black", lw=0.8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"difference in test {metric.title}, two standard errors")
    figure.suptitle(setting.title + (" (a smoke run)" if config.quick else ""))
    figure.savefig(path, dpi=150, format="png")


def plot_bands(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    x_label: str,
    y_label: str,
    *,
    chance: float | None = None,
    facts: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """A picture of the mean over runs and their range, a line a label.

    Parameters
    ----------
    lines : dict
        By label, where the values are, and a sequence of values for each run.
    x_label, y_label : str
    chance : float, optional
        Where to draw a line for guesses.
    facts : dict, optional
        By label, a line of what no run has part in: where the values are, and these.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (label, (x, runs)) in enumerate(lines.items()):
        _plot_band(axes, x, runs, _COLORS[index % len(_COLORS)], "-", label)
    if chance is not None:
        axes.axhline(chance, color="black", lw=0.8, ls=":", label="chance")
    for label, (x, values) in (facts or {}).items():
        axes.plot(x, values, color="gray", lw=1, ls="--", label=label)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    columns = min(len(axes.get_legend_handles_labels()[0]), 4)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _plot_band(
    axes: Any,
    x: Sequence[float],
    runs: Sequence[Sequence[float]],
    color: Any,
    style: str,
    label: str | None = None,
) -> None:
    columns = list(zip(*runs, strict=True))
    mean = [sum(column) / len(column) for column in columns]
    axes.plot(x, mean, style, color=color, lw=1.6, label=label)
    if len(runs) > 1:
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _scale_by_ratio(axes: Any) -> None:
    """A logarithmic axis where there are enough values to label on one; else a linear one."""
    low, high = axes.dataLim.intervaly
    if 0 < low < high / _LEAST_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_log_tick)
        axes.yaxis.set_minor_formatter(_log_tick)


def _log_tick(value: float, _: int) -> str:
    """Label 1, 2 and 5 times a power of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def by_epoch(
    runs: Sequence[Mapping[str, Any]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    arm: str,
    name: str,
) -> list[list[float]]:
    """One value an epoch of each run of an arm, in the order of `runs`; empty if not recorded."""
    logs = [records[run["key"]] for run in runs if run["arm"] == arm]
    return [[record[name] for record in log] for log in logs if log and name in log[0]]
