"""What repeated runs say: means, their errors, paired differences and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyguide.experiments.harness.experiment import Arm, Metric, Result

__all__ = ["is_noise", "mean_and_error", "summarize", "verdict"]

Records = Sequence[Mapping[str, Any]]

#: A difference beyond so many standard errors of it is no noise.
_ERRORS = 2.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, ``std(ddof=1) / sqrt(n)``; None for a single value.

    Examples
    --------
    >>> from pyguide.experiments.harness.statistics import mean_and_error
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


def is_noise(difference: float, error: float) -> bool:
    """Whether a difference is within two of its standard errors.

    Examples
    --------
    >>> from pyguide.experiments.harness.statistics import is_noise
    >>> is_noise(1.5, 1.0), is_noise(-3.0, 1.0)
    (True, False)
    """
    return abs(difference) <= _ERRORS * error


def verdict(difference: Mapping[str, Any], sign: int) -> str | None:
    """Whether a paired difference has the paper's sign, beyond two standard errors.

    "reproduced", "not reproduced" (beyond two the other way) or "within noise"; None for
    a single seed, whose error is not known.

    Parameters
    ----------
    difference : dict
        With ``mean`` and ``standard_error``.
    sign : int
        1 where the paper has a larger value than the baseline's, -1 where a smaller one.

    Examples
    --------
    >>> from pyguide.experiments.harness.statistics import verdict
    >>> verdict({"mean": 3.0, "standard_error": 1.0}, 1)
    'reproduced'
    >>> verdict({"mean": 1.5, "standard_error": 1.0}, 1)
    'within noise'
    """
    error = difference["standard_error"]
    if error is None:
        return None
    signed = sign * difference["mean"]
    if is_noise(signed, error):
        return "within noise"
    return "reproduced" if signed > 0 else "not reproduced"


def summarize(
    arms: Sequence[Arm],
    runs: Sequence[Mapping[str, Any]],
    records: Callable[[str], Records],
    metric: Metric,
    *,
    judge_gap: bool = False,
) -> dict[str, Any]:
    """Scores of each arm, and their differences to its baseline paired by seed.

    An arm is scored at one epoch for all its seeds, that of the lowest validation loss
    averaged over them (the paper's protocol); and, to compare, at each run's own epoch of
    lowest validation loss. Its gap is that between the training and the validation metric in
    the last epoch, positive where training is better.

    Parameters
    ----------
    arms : sequence of Arm
        In the order wanted; one without a run is left out.
    runs : sequence of dict
        Finished runs, with ``key``, ``arm``, ``seed`` and the test score at their best epoch.
    records : callable
        From a run's key to its record of every epoch.
    metric : Metric
        The score.
    judge_gap : bool
        Whether the gap has a verdict: reproduced, if it is smaller than the baseline's.

    Returns
    -------
    dict
        By arm: ``epoch``, ``test``, ``test_loss``, ``test_at_own_epochs``, ``gap``, ``loss_gap``,
        ``final_train`` and ``final_val``, and where steps were timed ``times``. Where there are
        runs of the baseline with the same seeds, also ``baseline``, ``difference``,
        ``gap_difference``, and of an arm judged by it ``loss_difference``; with ``verdict`` and
        ``gap_verdict`` where the paper says what to expect. The statistics are dicts of
        ``by_seed``, ``mean``, ``standard_error`` (None for one seed) and ``n``.
    """
    summary: dict[str, Any] = {}
    for arm in arms:
        own = sorted((run for run in runs if run["arm"] == arm.name), key=lambda run: run["seed"])
        if own:
            logs = {run["seed"]: records(run["key"]) for run in own}
            summary[arm.name] = _scores(own, logs, metric)
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        baseline = summary.get(arm.baseline or "")
        if arm.name in summary and baseline is not None:
            paper = by_name[arm.baseline].paper if arm.baseline in by_name else None
            sign = _expected_sign(arm, paper, metric)
            summary[arm.name] |= _compared(summary[arm.name], baseline, arm, sign, judge_gap)
    return summary


def _scores(
    runs: Sequence[Mapping[str, Any]], logs: Mapping[int, Records], metric: Metric
) -> dict[str, Any]:
    epoch = _shared_epoch(list(logs.values()))
    last = {seed: log[-1] for seed, log in logs.items()}
    train, val = (f"{split}_{metric.key}" for split in ("train", "val"))
    sign = 1 if metric.higher_is_better else -1
    scores = {
        "epoch": epoch,
        "test": _statistics({s: log[epoch - 1][f"test_{metric.key}"] for s, log in logs.items()}),
        "test_loss": _statistics({s: log[epoch - 1]["test_loss"] for s, log in logs.items()}),
        "test_at_own_epochs": _statistics({r["seed"]: r[f"test_{metric.key}"] for r in runs}),
        "final_train": _statistics({s: record[train] for s, record in last.items()}),
        "final_val": _statistics({s: record[val] for s, record in last.items()}),
        "gap": _statistics({s: sign * (r[train] - r[val]) for s, r in last.items()}),
        "loss_gap": _statistics({s: r["val_loss"] - r["task_loss"] for s, r in last.items()}),
    }
    times = _times([record for log in logs.values() for record in log])
    return scores | ({"times": times} if times else {})


def _times(records: Records) -> dict[str, float]:
    """Medians over the epochs that timed their steps: seconds of each part."""
    timed = [record["times"] for record in records if "times" in record]
    names = {name: None for times in timed for name in times}
    return {name: _median([times.get(name, 0.0) for times in timed]) for name in names}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _expected_sign(arm: Arm, baseline: Result | None, metric: Metric) -> int | None:
    """The sign of the difference in the paper; None if it has none."""
    if arm.expected is not None:
        return 1 if (arm.expected == "better") == metric.higher_is_better else -1
    if arm.paper is None or baseline is None or arm.paper[0] == baseline[0]:
        return None
    return 1 if arm.paper[0] > baseline[0] else -1


def _compared(
    own: Mapping[str, Any],
    baseline: Mapping[str, Any],
    arm: Arm,
    sign: int | None,
    judge_gap: bool,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    difference = _difference(own["test"], baseline["test"])
    gap = _difference(own["gap"], baseline["gap"])
    if difference is None or gap is None:
        return found
    found = {"baseline": arm.baseline, "difference": difference, "gap_difference": gap}
    if arm.judged_by_loss:
        found["loss_difference"] = _difference(own["test_loss"], baseline["test_loss"])
        worse = 1 if arm.expected == "worse" else -1
        found["verdict"] = verdict(found["loss_difference"], worse)
    elif sign is not None:
        found["verdict"] = verdict(difference, sign)
    if judge_gap:
        found["gap_verdict"] = verdict(gap, -1)
    return found


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
