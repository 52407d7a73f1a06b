"""A run: the sweep, the final runs at the rates that it picked, and the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import GRID_FIELDS, Config, target_only_fields
from pyguide.experiments.harness.consistency import consistency_of_groups
from pyguide.experiments.harness.curves import plot_curves, plot_differences
from pyguide.experiments.harness.experiment import Experiment
from pyguide.experiments.harness.folder import RunFolder
from pyguide.experiments.harness.grid import (
    extended_sweep,
    final_tasks,
    pick,
    shipped_rates,
    sweep_tasks,
    with_guides,
)
from pyguide.experiments.harness.jobs import GuideJob, TargetJob, arm_config
from pyguide.experiments.harness.processes import run_tasks
from pyguide.experiments.harness.progress import Progress, Task
from pyguide.experiments.harness.report import table
from pyguide.experiments.harness.shares import Processes
from pyguide.experiments.harness.statistics import summarize
from pyguide.experiments.harness.together import run_tasks_together, started_by_torchrun
from pyguide.files import atomic_write, writing
from pyguide.memory import available_bytes
from pyguide.torch_files import DamagedFile, load_tensors

__all__ = ["Run"]


class Run:
    """The work of one run folder.

    Parameters
    ----------
    folder : RunFolder
    experiment : Experiment
    scale : str
    config : Config
    workers : int
        Processes at a time.
    """

    def __init__(
        self, folder: RunFolder, experiment: Experiment, scale: str, config: Config, workers: int
    ) -> None:
        self.folder, self.experiment, self.scale = folder, experiment, scale
        self.setting, self.config, self.workers = experiment.scales[scale], config, workers
        self.together = started_by_torchrun()
        self.arms = self.setting.variants(config)
        self.sweep = sweep_tasks(self.setting, config, folder.files) if config.sweep else []
        while self._extend_sweep():
            pass
        self.failed: dict[str, str] = {}
        self._kept: dict[str, int] = {}  # bytes of the guide's outputs in a job, by arm
        self._named: set[str] = set()  # Guides whose damage has been told.

    def __call__(self) -> dict[str, Any]:
        """Do what the folder lacks; write and return the results."""
        with writing(self.folder.path):
            self._check_data()
        sweep = self._pending(self.sweep)
        final = self._pending(self._final_tasks(self._rates(assumed=True)))
        planned = list({task.key: task for task in [*sweep, *final]}.values())
        self._spare_memory(planned)
        if self.config.quick:
            print("--quick: a smoke run; its numbers say nothing about guidance", file=sys.stderr)
        jobs = "1 job" if len(planned) == 1 else f"{len(planned)} jobs"
        how = f"{self.workers} at a time"
        if self.together:
            how = f"{Processes().size} processes on each"
        print(f"{jobs}, {how}, in {self.folder.path}", file=sys.stderr)
        self.progress = Progress(planned)
        self._done, self._planned = 0, len(planned)
        try:
            self._run(sweep)
            while more := self._extend_sweep():
                beyond = self._pending(more)
                self._planned += len(beyond)
                self.progress.add(beyond)
                self._run(beyond)
            self._run(self._pending(self._final_tasks(self._rates())))
            self._skip_unpicked(final)
            return self._finish()
        finally:
            self.progress.close()

    def _extend_sweep(self) -> list[Task]:
        """Add to the sweep, and return, what lies beyond the edges that were picked so far."""
        more = extended_sweep(
            self.setting, self.config, self.folder.files, self.sweep, self._runs(self.sweep)
        )
        # In one order, whatever the order in which jobs ended.
        position = {arm.name: i for i, arm in enumerate(self.arms)}
        self.sweep = sorted([*self.sweep, *more], key=lambda task: _place(task, position))
        return more

    def _check_data(self) -> None:
        """All data are made, and found whole, before any job reads them; each fills a batch."""
        made: dict[str, Splits] = {}
        for arm in self.arms:
            own = arm_config(self.config, arm)
            # With --vary an arm has data of its own; a field of the target alone changes none.
            without = {*target_only_fields(own), *GRID_FIELDS}
            fields = {k: v for k, v in own.to_json().items() if k not in without}
            key = json.dumps(fields, sort_keys=True)
            if key not in made:
                made[key] = self.setting.data(own, self.folder.cache)
            samples = len(made[key].train)
            self._kept[arm.name] = self.setting.kept_bytes(own, arm, made[key])
            sizes = {"--batch-size": own.batch_size}
            if arm.guide == "trained" and own.guide_weights is None:
                sizes["--guide-batch-size"] = own.guide_batch_size
            for name, size in sizes.items():
                if samples < size:
                    raise UserError(
                        f"{name}: {samples} training samples do not fill a batch of {size}"
                    )
                if size % Processes().size:
                    raise UserError(
                        f"{name}: a batch of {size} is not shared evenly by {Processes().size} "
                        "processes"
                    )

    def _spare_memory(self, tasks: Sequence[Task]) -> None:
        """Fewer jobs at a time where each keeps so much that memory would not do."""
        free = available_bytes()
        jobs = [task.job for task in tasks if isinstance(task.job, TargetJob)]
        kept = max((self._kept[job.arm.name] for job in jobs), default=0)
        if free is None or kept * (1 if self.together else self.workers) <= free:
            return
        self.workers = max(1, free // kept)
        own, there = (f"{size / 1e9:.2g} GB" for size in (kept, free))
        print(
            f"a job keeps {own} of its guide's outputs, and {there} are free: {self.workers} at a "
            "time; a run with --guide-outputs computed keeps none",
            file=sys.stderr,
        )

    def _pending(self, targets: Sequence[Task]) -> list[Task]:
        """The targets that the folder lacks, and the guides that these need and it lacks."""
        lacking = [task for task in targets if not self._finished(task)]
        return [
            task
            for task in with_guides(lacking, self.folder.files)
            if not (self._finished(task) and self._usable(task))
        ]

    def _finished(self, task: Task) -> bool:
        return self.folder.finished(task.key, task.job)

    def _usable(self, task: Task) -> bool:
        """Whether the weights of a finished guide can be read."""
        if not isinstance(task.job, GuideJob):
            return True
        try:
            load_tensors(task.job.files.guide)
        except (DamagedFile, FileNotFoundError) as error:
            if task.key not in self._named:
                self._named.add(task.key)
                print(f"{task.job.name}: trained again: {error}", file=sys.stderr)
            return False
        return True

    def _rates(self, *, assumed: bool = False) -> dict[str, float]:
        """Learning rates by arm; `assumed` fills in one where the sweep has not ended."""
        if not self.config.sweep:
            return shipped_rates(self.setting, self.config)
        unfinished = {
            task.job.arm.name
            for task in self.sweep
            if isinstance(task.job, TargetJob) and not self._finished(task)
        }
        picked = pick(self._runs(self.sweep))
        rates = {arm: lr for arm, lr in picked.items() if arm not in unfinished}
        if assumed:
            rates = {arm.name: self.config.lrs[0] for arm in self.arms} | rates
        return rates

    def _final_tasks(self, rates: dict[str, float]) -> list[Task]:
        return final_tasks(self.setting, self.config, self.folder.files, rates)

    def _run(self, tasks: Sequence[Task]) -> None:
        run = run_tasks_together if self.together else partial(run_tasks, workers=self.workers)
        self.failed |= run(
            tasks,
            threads=self.config.threads,
            on_epoch=lambda task, record: self.folder.add_epoch(task.key, task.job, record),
            on_result=self._on_result,
            progress=self.progress,
        )

    def _on_result(self, task: Task, result: dict[str, Any]) -> None:
        self.folder.add_result(task.key, task.job, result)
        self.folder.write_results(self.results())
        self._done += 1
        count = f"[{self._done}/{self._planned}] {task.job.name}"
        self.progress.message(f"{count}: {self._outcome(result)}")

    def _outcome(self, result: dict[str, Any]) -> str:
        if "diverged" in result:
            return result["diverged"]
        metric = self.setting.metric
        kind = "test" if f"test_{metric.key}" in result else "validation"
        value = metric.scale * result[f"{'test' if kind == 'test' else 'val'}_{metric.key}"]
        at = f"best epoch {result['best_epoch']}, {result['seconds']:.0f} s"
        return f"{kind} {metric.label} {value:.1f} {metric.unit}".rstrip() + f" ({at})"

    def _skip_unpicked(self, planned: Sequence[Task]) -> None:
        """Name the final runs whose arm got no learning rate."""
        rates = self._rates()
        for task in planned:
            job = task.job
            if isinstance(job, TargetJob) and job.arm.name not in rates:
                self.failed[task.key] = f"its sweep gave no learning rate for arm {job.arm.name}"
                self.progress.skip(task)

    def _runs(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The finished ones of the tasks as records."""
        runs = []
        for task in tasks:
            if self._finished(task):
                job = task.job
                arm = {"arm": job.arm.name, "lr": job.lr} if isinstance(job, TargetJob) else {}
                names = {"key": task.key, **arm, "seed": task.job.identity["seed"]}
                runs.append(names | self.folder.result(task.key))
        return runs

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds: the same whatever the order in which jobs ended."""
        rates = self._rates()
        final = self._final_tasks(rates)
        tasks = with_guides([*self.sweep, *final], self.folder.files)
        guides = [task for task in tasks if isinstance(task.job, GuideJob)]
        runs, trained = self._runs(final), self._runs(guides)
        summary = summarize(
            self.arms,
            runs,
            self.folder.records,
            self.setting.metric,
            judge_gap=self.setting.judge_gap,
        )
        return {
            "experiment": self.experiment.name,
            "scale": self.scale,
            "learning_rates": rates,
            "sweep": self._runs(self.sweep),
            "guides": trained,
            "runs": runs,
            "failed": dict(sorted(self.failed.items())),
            "summary": summary,
            "error_consistency": consistency_of_groups(self._right(trained, runs)),
        }

    def _right(
        self, guides: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
    ) -> dict[str, dict[int, str]]:
        """Which test samples are right, by group and seed: of guides, and of the arms compared."""
        groups: dict[str, dict[int, str]] = {}
        for guide in guides:
            if "test_right" in guide:
                # With --vary of what the guide depends on, several have the same seed.
                name = "guides" + "".join(guide["key"].partition(",")[1:])
                groups.setdefault(name, {})[guide["seed"]] = guide["test_right"]
        groups |= {arm.name: {} for arm in self.arms if self.setting.is_compared(arm)}
        for run in runs:
            if run["arm"] in groups and "test_right" in run:
                groups[run["arm"]][run["seed"]] = run["test_right"]
        return groups

    def _finish(self) -> dict[str, Any]:
        results = self.results()
        self.folder.write_results(results)
        records = {run["key"]: self.folder.records(run["key"]) for run in results["runs"]}
        with writing(self.folder.path):
            with atomic_write(self.folder.table) as temporary:
                text = table(self.setting, self.config, self.arms, results)
                temporary.write_text(text, encoding="utf-8")
            if results["runs"]:
                with atomic_write(self.folder.picture("curves")) as temporary:
                    # Of dozens of arms the curves are no longer told apart.
                    arms = [arm for arm in self.arms if self.setting.is_compared(arm)]
                    plot_curves(
                        self.setting,
                        self.config,
                        arms or self.arms,
                        results["runs"],
                        records,
                        temporary,
                    )
                with atomic_write(self.folder.picture("differences")) as temporary:
                    plot_differences(
                        self.setting, self.config, self.arms, results["summary"], temporary
                    )
                drawn = self.setting.draw(self.config, self.arms, results["runs"])
                for name, figure in drawn.items():
                    with atomic_write(self.folder.picture(name)) as temporary:
                        figure.savefig(temporary, dpi=150, format="png")
        return results


def _place(task: Task, position: Mapping[str, int]) -> tuple[int, float]:
    """Where a task of a sweep stands in the results: by arm and learning rate."""
    assert isinstance(task.job, TargetJob)
    return position[task.job.arm.name], task.job.lr
