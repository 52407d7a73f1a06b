"""The grid of an experiment: arms x learning rates x seeds, as tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pyguide.experiments.harness.config import Config, target_only_fields
from pyguide.experiments.harness.experiment import Arm, Setting
from pyguide.experiments.harness.jobs import Files, GuideJob, TargetJob, arm_config
from pyguide.experiments.harness.progress import Task

__all__ = [
    "extended_sweep",
    "final_tasks",
    "pick",
    "shipped_rates",
    "sweep_tasks",
    "with_guides",
]

FilesOf = Callable[[str, str], Files]


def sweep_tasks(setting: Setting[Any], config: Config, files: FilesOf) -> list[Task]:
    """Every arm at every learning rate with the sweep's seed."""
    return [
        _task(setting, config, files, arm, config.sweep_seed, lr, sweep=True)
        for arm in setting.variants(config)
        for lr in config.lrs
    ]


def extended_sweep(
    setting: Setting[Any],
    config: Config,
    files: FilesOf,
    swept: Sequence[Task],
    runs: Sequence[Mapping[str, Any]],
) -> list[Task]:
    """The next rate of each arm whose best one is the highest or lowest of those swept.

    Parameters
    ----------
    swept : sequence of Task
        All of the sweep so far.
    runs : sequence of mapping
        The finished ones' records: an arm that lacks one waits.
    """
    tried: dict[str, set[float]] = {}
    for task in swept:
        assert isinstance(task.job, TargetJob)
        tried.setdefault(task.job.arm.name, set()).add(task.job.lr)
    done = Counter(run["arm"] for run in runs)
    best = pick(runs)
    tasks = []
    for arm in setting.variants(config):
        rates = sorted(tried.get(arm.name, ()))
        if (
            len(rates) > 1
            and len(rates) < len(config.lrs) + config.extend
            and done[arm.name] == len(rates)
            and best.get(arm.name) in (rates[0], rates[-1])
        ):
            outwards = rates if best[arm.name] == rates[-1] else rates[::-1]
            lr = _beyond(outwards)
            tasks.append(_task(setting, config, files, arm, config.sweep_seed, lr, sweep=True))
    return tasks


def _beyond(rates: Sequence[float]) -> float:
    """The rate after the last, whose steps repeat every other time: 1, 3, 10, then 30."""
    *earlier, previous, last = rates
    step = previous / earlier[-1] if earlier else last / previous
    return float(f"{last * step:.6g}")


def final_tasks(
    setting: Setting[Any], config: Config, files: FilesOf, rates: Mapping[str, float]
) -> list[Task]:
    """Every arm that has a learning rate with every final seed."""
    return [
        _task(setting, config, files, arm, seed, rates[arm.name], sweep=False)
        for arm in setting.variants(config)
        if arm.name in rates
        for seed in config.seeds
    ]


def _task(
    setting: Setting[Any],
    config: Config,
    files: FilesOf,
    arm: Arm,
    seed: int,
    lr: float,
    *,
    sweep: bool,
) -> Task:
    key = f"sweep-{arm.name}-lr{lr!r}" if sweep else f"{arm.name}-seed{seed}"
    own = arm_config(config, arm)
    guide = guide_key(config, arm, seed)
    job = TargetJob(setting, own, arm, seed, lr, sweep, files(key, guide))
    needs = guide if arm.guide == "trained" and own.guide_weights is None else None
    return Task(key, job, needs=needs, cost=setting.cost(own, arm))


def guide_key(config: Config, arm: Arm, seed: int) -> str:
    """The task of an arm's trained guide; arms share it if they differ only in the target."""
    return f"guide-seed{seed}" + "".join(
        f",{name}={value}"
        for name, value in arm.changes.items()
        if name not in target_only_fields(config)
    )


def with_guides(tasks: Sequence[Task], files: FilesOf) -> list[Task]:
    """The tasks in the order to start them: the guides that they need, then the long ones."""
    guides = {}
    for task in tasks:
        job = task.job
        assert isinstance(job, TargetJob)
        if task.needs is not None and task.needs not in guides:
            own = files(task.needs, task.needs)
            guide = GuideJob(job.setting, job.config, job.seed, not job.sweep, own)
            guides[task.needs] = Task(task.needs, guide)
    # Long jobs before short ones, so that the workers end at about the same time.
    return [*guides.values(), *sorted(tasks, key=lambda task: -task.cost)]


def shipped_rates(setting: Setting[Any], config: Config) -> dict[str, float]:
    """The configuration's learning rate of each arm."""
    return {arm.name: config.lr[arm.name.partition(",")[0]] for arm in setting.variants(config)}


def pick(runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The learning rate of lowest validation loss of each arm of a sweep.

    An arm that diverged at every rate has none.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        arm = run["arm"]
        if "diverged" not in run and (arm not in best or run["val_loss"] < best[arm]["val_loss"]):
            best[arm] = run
    return {arm: run["lr"] for arm, run in best.items()}
