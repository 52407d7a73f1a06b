"""The report of a run in Markdown, for any experiment and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.experiment import Arm, Metric, Result, Setting
from pyguide.experiments.harness.statistics import is_noise

__all__ = ["results_table", "table"]

_VERDICTS = (
    "*Reproduced*: beyond two standard errors of the difference in the paper's direction; "
    "*not reproduced*: beyond two the other way; else *within noise*. *Noise in the paper*: its "
    "own difference is within two of its standard errors."
)

# Of one experiment: name, setting, arms and results.
Run = tuple[str, Setting[Any], Sequence[Arm], Mapping[str, Any]]


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
        lines += _gap_lines(setting, arms, results)
    lines += [setting.describe(config), ""]
    if config.seeds:
        lines += _cost_lines(arms, results)
        lines += _consistency_lines(arms, results)
    if config.sweep:
        lines += _sweep_lines(config, arms, results)
    guides = [guide for guide in results["guides"] if f"test_{setting.metric.key}" in guide]
    if guides:
        lines += [_guide_line(setting.metric, guides), ""]
    for key, reason in results["failed"].items():
        lines += [f"**Failed: {key}: {reason}**", ""]
    return "\n".join(lines).rstrip() + "\n"


def results_table(runs: Sequence[Run]) -> list[str]:
    """Of all experiments, the arms that the paper says something of, a row each."""
    titles = ["experiment", "arm", "test", "metric", "difference to baseline", "verdict"]
    rows = [[*titles, "gap: difference", "verdict", "seeds", "paper: difference"]]
    for name, setting, arms, results in runs:
        by_name = {arm.name: arm for arm in arms}
        labels = {arm.name: arm.label for arm in arms}
        for arm in arms:
            own = results["summary"].get(arm.name)
            if own is None or not {"verdict", "gap_verdict"} & set(own):
                continue
            metric = setting.metric
            paper = _paper_difference(arm, by_name.get(own["baseline"]))
            cells = [
                _score(metric, own["test"]),
                _title(metric),
                _difference(metric, own, "difference", labels),
                _verdict(own, paper),
                _difference(metric, own, "gap_difference", labels),
                own.get("gap_verdict") or "–",
                str(own["difference"]["n"]),
                (arm.expected or "–") if paper is None else _mean_and_error(*paper, sign="+"),
            ]
            rows.append([name, arm.label, *cells])
    if len(rows) == 1:
        return []
    legend = (
        "Mean ± standard error over seeds; differences are paired by seed, the paper's are those "
        f"of its means. The gap is that between training and validation. {_VERDICTS}"
    )
    return [*markdown_table(rows), "", legend]


def _paper_difference(arm: Arm, baseline: Arm | None) -> Result | None:
    """The paper's difference, and its standard error where both means have one."""
    if arm.paper is None or baseline is None or baseline.paper is None:
        return None
    (mean, error), (base, base_error) = arm.paper, baseline.paper
    both = None if error is None or base_error is None else math.hypot(error, base_error)
    return mean - base, both


def _title(metric: Metric) -> str:
    return metric.title if metric.higher_is_better else f"{metric.title}, lower is better"


def _result_lines(setting: Setting[Any], arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    metric, rates, summary = setting.metric, results["learning_rates"], results["summary"]
    judged = any(arm.paper is not None or arm.expected is not None for arm in arms)
    titles = [
        "",
        f"{setting.data_name}, test {_title(metric)}",
        "difference to baseline",
        *(["verdict"] if judged else []),
        "at own epochs",
        "epoch",
        "seeds",
        "learning rate",
    ]
    papers = any(arm.paper is not None for arm in arms)
    rows = [[*titles, f"paper: {setting.paper_name}"] if papers else titles]
    labels = {arm.name: arm.label for arm in arms}
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        cells = ["–"] * (6 if judged else 5)
        own = summary.get(arm.name)
        if own is not None:
            theirs = _paper_difference(arm, by_name.get(arm.baseline or ""))
            cells = [
                _score(metric, own["test"]),
                _difference(metric, own, "difference", labels),
                *([_verdict(own, theirs)] if judged else []),
                _score(metric, own["test_at_own_epochs"]),
                str(own["epoch"]),
                str(own["test"]["n"]),
            ]
        rate = f"{rates[arm.name]:g}" if arm.name in rates else "–"
        paper = "–" if arm.paper is None else _mean_and_error(*arm.paper)
        rows.append([arm.label, *cells, rate, *([paper] if papers else [])])
    lines = [
        *markdown_table(rows),
        "",
        "Mean ± standard error over seeds. Test scores are those of the epoch with the lowest "
        "validation loss averaged over the seeds; *at own epochs*: of each run's own epoch of "
        "lowest validation loss. Differences are paired by seed.",
    ]
    if judged:
        lines += [_VERDICTS]
    if papers:
        lines += [
            "The paper's column is of its own data, networks and metric: compare the order of "
            "the arms, not the numbers."
        ]
    return [*lines, ""]


def _difference(
    metric: Metric, own: Mapping[str, Any], name: str, labels: Mapping[str, str]
) -> str:
    """A paired difference; of another baseline than the first arm, also its name."""
    if name not in own:
        return "–"
    text = _score(metric, own[name], "+")
    baseline = own["baseline"]
    first = next(iter(labels))
    return text if baseline == first else f"{text} ({labels.get(baseline, baseline)})"


def _verdict(own: Mapping[str, Any], paper: Result | None) -> str:
    """On the metric, or on the loss, whose difference is then named; and what the paper's is."""
    notes = []
    if "loss_difference" in own:
        notes.append(f"loss {_score(Metric(scale=1.0), own['loss_difference'], '+')}")
    mean, error = paper or (0.0, None)
    if own.get("verdict") and error is not None and is_noise(mean, error):
        notes.append("noise in the paper")
    text = own.get("verdict") or "–"
    return f"{text} ({'; '.join(notes)})" if notes else text


def _gap_lines(setting: Setting[Any], arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    """Training against validation in the last epoch."""
    metric, summary = setting.metric, results["summary"]
    judged = setting.judge_gap
    titles = [
        "last epoch",
        f"training {metric.title}",
        f"validation {metric.title}",
        "gap",
        "difference to baseline",
        *(["verdict"] if judged else []),
        "validation loss - training loss",
    ]
    rows = [titles]
    plain = Metric(scale=1.0)
    labels = {arm.name: arm.label for arm in arms}
    for arm in arms:
        own = summary.get(arm.name)
        if own is None:
            continue
        scores = [_score(metric, own[name]) for name in ("final_train", "final_val", "gap")]
        verdict = [own.get("gap_verdict") or "–"] if judged else []
        difference = _difference(metric, own, "gap_difference", labels)
        loss = _score(plain, own["loss_gap"])
        rows.append([arm.label, *scores, difference, *verdict, loss])
    return [] if len(rows) == 1 else [*markdown_table(rows), ""]


def _cost_lines(arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    """Shares of a step with a guide, and of alignment before the training."""
    names = ("guide", "distances", "backward")
    rows = [["a step with a guide", "ms", "guide", "distances", "their backward", "together"]]
    for arm in arms:
        times = results["summary"].get(arm.name, {}).get("times", {})
        if not times:
            continue
        total = sum(times[name] for name in names if name in times)
        shares = [times.get(name) for name in names] + [total]
        cells = ["–" if s is None else f"{100 * s / times['step']:.0f} %" for s in shares]
        rows.append([arm.label, f"{1000 * times['step']:.1f}", *cells])
    lines = []
    if len(rows) > 1:
        text = (
            "Medians over epochs and seeds; jobs ran side by side, so compare the shares. The "
            "guide's is its forward pass."
        )
        lines = [*markdown_table(rows), "", text, ""]
    return lines + _alignment_lines(arms, results["runs"])


def _alignment_lines(arms: Sequence[Arm], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    for arm in arms:
        shares = [
            run["initialization"]["seconds"] / run["seconds"]
            for run in runs
            if run["arm"] == arm.name and "seconds" in run.get("initialization", {})
        ]
        if shares:
            parts.append(f"{arm.label} {100 * median(shares):.0f} %")
    if not parts:
        return []
    return [f"Alignment took, of a run's whole time (median): {', '.join(parts)}.", ""]


def _consistency_lines(arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    """Error consistency within and between arms and guides."""
    labels = {arm.name: arm.label for arm in arms}
    rows = [["error consistency (κ)", "and", "other seeds", "pairs", "same seed"]]
    for row in results["error_consistency"]:
        mean, same = row["mean"], row["same_seed"]
        error = row["standard_error"]
        other = "–" if mean is None else f"{mean:.3f}"
        if error is not None:
            other += f" ± {error:.3f}"
        names = [_group(labels, row[side]) for side in ("first", "second")]
        rows.append([*names, other, str(row["pairs"]), "–" if same is None else f"{same:.3f}"])
    if len(rows) == 1:
        return []
    text = (
        "Cohen's κ of being right on the same test samples: 1 for the same errors, 0 for "
        "independent ones (Geirhos et al. 2020). Each network is taken at its own epoch of lowest "
        "validation loss. The standard error is over pairs, which share networks: it is too small. "
        "*Same seed*: a guide and the target that it guided, or two targets of "
        "one initialisation."
    )
    return [*markdown_table(rows), "", text, ""]


def _group(labels: Mapping[str, str], name: str) -> str:
    """An arm's label; of guides, also what was varied."""
    return labels.get(name) or name.replace("guides", "trained guides", 1).replace(",", ", ")


def _sweep_lines(config: Config, arms: Sequence[Arm], results: dict[str, Any]) -> list[str]:
    """Lowest validation losses, the picked ones bold."""
    runs = {(run["arm"], run["lr"]): run for run in results["sweep"]}
    lrs = sorted({*config.lrs, *(lr for _, lr in runs)})
    rows = [["lowest validation loss", *(f"lr {lr:g}" for lr in lrs)]]
    edges = []
    for arm in arms:
        picked = results["learning_rates"].get(arm.name)
        cells = []
        for lr in lrs:
            run = runs.get((arm.name, lr))
            cell = "–" if run is None else "diverged"
            if run is not None and "diverged" not in run:
                cell = f"{run['val_loss']:.3f}"
            cells.append(f"**{cell}**" if lr == picked else cell)
        rows.append([arm.label, *cells])
        tried = [*config.lrs, *(lr for name, lr in runs if name == arm.name)]
        if picked in (min(tried), max(tried)):
            edges.append(arm.label)
    lines = [*markdown_table(rows), "", f"Learning rates swept with seed {config.sweep_seed}."]
    if edges and len(config.lrs) > 1:
        lines += [
            f"Picked at the edge of the rates, so a better one may lie outside: {'; '.join(edges)}."
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
    scaled = None if error is None else metric.scale * error
    return _mean_and_error(metric.scale * statistics["mean"], scaled, sign)


def _mean_and_error(mean: float, error: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" if error is None else f"{mean:{sign}.2f} ± {error:.2f}"


def markdown_table(rows: list[list[str]]) -> list[str]:
    """A pipe table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return [lines[0], rule, *lines[1:]]
