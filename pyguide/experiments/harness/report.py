"""Summary and table of a run, for any experiment and metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.experiment import Arm, Metric, Setting

__all__ = ["mean_and_error", "summarize", "table"]

Records = Sequence[Mapping[str, Any]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, ``std(ddof=1) / sqrt(n)``; None for a single value.

    Examples
    --------
    >>> from pyguide.experiments.harness.report import mean_and_error
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


def summarize(
    arms: Sequence[Arm],
    runs: Sequence[Mapping[str, Any]],
    records: Callable[[str], Records],
    metric: str,
) -> dict[str, Any]:
    """Test scores of each arm, and their differences to its baseline paired by seed.

    An arm is scored at one epoch for all its seeds, that of the lowest validation loss
    averaged over them (the paper's protocol); and, to compare, at each run's own epoch of
    lowest validation loss.

    Parameters
    ----------
    arms : sequence of Arm
        In the order wanted; one without a run is left out.
    runs : sequence of dict
        Finished runs, with ``key``, ``arm``, ``seed`` and the test score at their best epoch.
    records : callable
        From a run's key to its record of every epoch.
    metric : str
        Key of the score.

    Returns
    -------
    dict
        By arm: ``epoch``, ``test``, ``test_at_own_epochs``, and where there are runs of the
        baseline with the same seeds ``baseline`` and ``difference``. The statistics are dicts
        of ``by_seed``, ``mean``, ``standard_error`` (None for one seed) and ``n``.
    """
    summary: dict[str, Any] = {}
    for arm in arms:
        own = sorted((run for run in runs if run["arm"] == arm.name), key=lambda run: run["seed"])
        if not own:
            continue
        logs = {run["seed"]: records(run["key"]) for run in own}
        epoch = _shared_epoch(list(logs.values()))
        scores = {seed: log[epoch - 1][f"test_{metric}"] for seed, log in logs.items()}
        own_epochs = {run["seed"]: run[f"test_{metric}"] for run in own}
        summary[arm.name] = {
            "epoch": epoch,
            "test": _statistics(scores),
            "test_at_own_epochs": _statistics(own_epochs),
        }
    for arm in arms:
        baseline = summary.get(arm.baseline or "")
        if arm.name in summary and baseline is not None:
            difference = _difference(summary[arm.name]["test"], baseline["test"])
            if difference is not None:
                summary[arm.name] |= {"baseline": arm.baseline, "difference": difference}
    return summary


def _shared_epoch(logs: Sequence[Records]) -> int:
    """The first epoch of the lowest validation loss averaged over the runs."""
    losses = [
        math.fsum(record["val_loss"] for record in epoch) for epoch in zip(*logs, strict=True)
    ]
    return losses.index(min(losses)) + 1


def _difference(
    statistics: Mapping[str, Any], baseline: Mapping[str, Any]
) -> dict[str, Any] | None:
    theirs = baseline["by_seed"]
    pairs = {
        int(seed): value - theirs[seed]
        for seed, value in statistics["by_seed"].items()
        if seed in theirs
    }
    return _statistics(pairs) if pairs else None


def _statistics(by_seed: Mapping[int, float]) -> dict[str, Any]:
    # In the order of the seeds: the last bits of a sum depend on the order of its terms.
    by_seed = dict(sorted(by_seed.items()))
    mean, error = mean_and_error(list(by_seed.values()))
    return {
        "by_seed": {str(seed): value for seed, value in by_seed.items()},
        "mean": mean,
        "standard_error": error,
        "n": len(by_seed),
    }


def table(
    setting: Setting[Any], config: Config, arms: Sequence[Arm], results: dict[str, Any]
) -> str:
    """The report in Markdown: a row an arm, with the paper's result, and the sweep.

    Parameters
    ----------
    arms : sequence of Arm
        The arms that were to run.
    results : dict
        What ``results.json`` holds.
    """
    lines = [f"# {setting.title}", ""]
    if config.quick:
        lines += ["**A smoke run (`--quick`): these numbers say nothing about guidance.**", ""]
    if config.seeds:
        lines += _result_lines(setting, arms, results)
    lines += [setting.describe(config), ""]
    if config.sweep:
        lines += _sweep_lines(config, arms, results)
    guides = [guide for guide in results["guides"] if f"test_{setting.metric.key}" in guide]
    if guides:
        lines += [_guide_line(setting.metric, guides), ""]
    for key, reason in results["failed"].items():
        lines += [f"**Failed: {key}: {reason}**", ""]
    return "\n".join(lines).rstrip() + "\n"


def _result_lines(setting: Setting[Any], arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    metric, rates, summary = setting.metric, results["learning_rates"], results["summary"]
    better = "" if metric.higher_is_better else ", lower is better"
    titles = [
        "",
        f"{setting.data_name}, test {metric.title}{better}",
        "difference to baseline",
        "at own epochs",
        "epoch",
        "seeds",
        "learning rate",
    ]
    papers = any(arm.paper is not None for arm in arms)
    rows = [[*titles, f"paper: {setting.paper_name}"] if papers else titles]
    for arm in arms:
        cells = ["–"] * 5
        own = summary.get(arm.name)
        if own is not None:
            difference = own.get("difference")
            cells = [
                _score(metric, own["test"]),
                "–" if difference is None else _score(metric, difference, "+"),
                _score(metric, own["test_at_own_epochs"]),
                str(own["epoch"]),
                str(own["test"]["n"]),
            ]
        rate = f"{rates[arm.name]:g}" if arm.name in rates else "–"
        paper = "–" if arm.paper is None else f"{arm.paper[0]:.2f} ± {arm.paper[1]:.2f}"
        rows.append([arm.label, *cells, rate, *([paper] if papers else [])])
    lines = [
        *_markdown(rows),
        "",
        "Mean ± standard error over seeds. Test scores are those of the epoch with the lowest "
        "validation loss averaged over the seeds; *at own epochs*: of each run's own epoch of "
        "lowest validation loss. Differences are paired by seed.",
    ]
    if papers:
        lines += [
            "The paper's column is of its own data, networks and metric: compare the order of "
            "the arms, not the numbers."
        ]
    return [*lines, ""]


def _sweep_lines(config: Config, arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    """Lowest validation losses, the picked ones bold."""
    runs = {(run["arm"], run["lr"]): run for run in results["sweep"]}
    rows = [["lowest validation loss", *(f"lr {lr:g}" for lr in config.lrs)]]
    edges = []
    for arm in arms:
        picked = results["learning_rates"].get(arm.name)
        cells = []
        for lr in config.lrs:
            run = runs.get((arm.name, lr))
            cell = "–" if run is None else "diverged"
            if run is not None and "diverged" not in run:
                cell = f"{run['val_loss']:.3f}"
            cells.append(f"**{cell}**" if lr == picked else cell)
        rows.append([arm.label, *cells])
        if picked in (min(config.lrs), max(config.lrs)):
            edges.append(arm.label)
    lines = [*_markdown(rows), "", f"Learning rates swept with seed {config.sweep_seed}."]
    if edges and len(config.lrs) > 1:
        lines += [
            f"Picked at the edge of the rates, so a better one may lie outside: {', '.join(edges)}."
        ]
    return [*lines, ""]


def _guide_line(metric: Metric, guides: Sequence[Mapping[str, Any]]) -> str:
    scores = ", ".join(
        f"{metric.scale * guide[f'test_{metric.key}']:.1f} ({guide['key'].removeprefix('guide-')})"
        for guide in guides
    )
    return f"The trained guides, test {metric.title}: {scores}."


def _score(metric: Metric, statistics: Mapping[str, Any], sign: str = "") -> str:
    error = statistics["standard_error"]
    mean = f"{metric.scale * statistics['mean']:{sign}.2f}"
    return mean if error is None else f"{mean} ± {metric.scale * error:.2f}"


def _markdown(rows: list[list[str]]) -> list[str]:
    """A pipe table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return [lines[0], rule, *lines[1:]]
