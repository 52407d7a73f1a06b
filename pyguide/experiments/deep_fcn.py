"""The deep-FCN experiment: three arms, several seeds, one run folder.

The paper's Deep FCN guided by a ResNet-18 on ImageNet (arXiv 2410.20035), made small:
MNIST-1D in place of ImageNet, a 1-D ResNet in place of the ResNet-18.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

import pyguide
from pyguide.experiments.config import QUICK, Config, check_device
from pyguide.experiments.errors import UserError
from pyguide.experiments.files import atomic_write, read_json, write_json
from pyguide.experiments.mnist1d import generate
from pyguide.experiments.report import plot_curves, summarize, table
from pyguide.experiments.runner import Progress, Task, available_cores, run_tasks
from pyguide.experiments.training import GuideJob, TargetJob

__all__ = ["RunFolder", "epoch_cost", "main", "run", "versions"]


def main(args: argparse.Namespace) -> int:
    """Run ``pyguide train deep-fcn`` with parsed arguments; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done.
    """
    options = {field.name for field in fields(Config)} | {"out", "resume", "workers"}
    given = {name: value for name, value in vars(args).items() if name in options}
    workers = given.pop("workers", None)
    if workers is not None and workers < 1:
        raise UserError(f"--workers: expected at least 1, got {workers}")
    resume = given.pop("resume", None)
    if resume is not None:
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise UserError(f"--resume takes its configuration from the folder: drop {names}")
        folder, config = RunFolder.open(Path(resume))
        check_device(config.device)
    else:
        out = Path(given.pop("out", f"runs/deep-fcn-{datetime.now():%Y%m%d-%H%M%S}"))
        config = (QUICK if given.pop("quick", False) else Config()).changed(given)
        check_device(config.device)
        folder = RunFolder.create(out, config)
    try:
        failed = run(folder, config, workers or max(1, available_cores() // config.threads))
    except KeyboardInterrupt:
        print(
            f"interrupted; to continue: pyguide train deep-fcn --resume {folder.path}",
            file=sys.stderr,
        )
        return 130
    encoding = sys.stdout.encoding or "utf-8"  # One without "±" must not end in a traceback.
    text = folder.table.read_text(encoding="utf-8")
    print(text.encode(encoding, "replace").decode(encoding))
    print(f"curves: {folder.path / 'curves.png'}")
    if failed:
        print(
            f"{len(failed)} of the runs failed and are missing above; to try them again: "
            f"pyguide train deep-fcn --resume {folder.path}",
            file=sys.stderr,
        )
    return 1 if failed else 0


class RunFolder:
    """The files of one run, of which this process is the only writer.

    ``metrics.jsonl`` has a line an epoch of every job, flushed; ``results.json`` has the
    finished jobs and is rewritten after each; the table and the curves come at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data.npz"
        self.table = path / "table.md"
        self.results: dict[str, Any] = {}
        self._metrics: TextIO | None = None

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Make a new folder; UserError if it exists and is not empty."""
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(
                    f"--out {path} exists: choose another, or continue it with --resume {path}"
                )
            path.mkdir(parents=True, exist_ok=True)
            write_json(
                path / "config.json",
                {"experiment": "deep-fcn", "config": config.to_json(), "versions": versions()},
            )
        except OSError as error:
            raise UserError(f"--out {path}: cannot write there: {error.strerror}") from error
        folder = cls(path)
        folder.results = {"experiment": "deep-fcn", "guides": [], "runs": [], "failed": {}}
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, Config]:
        """Read a folder to continue it; UserError if it is none."""
        folder = cls(path)
        try:
            config = Config.from_json(read_json(path / "config.json")["config"])
            results = path / "results.json"
            folder.results = (
                read_json(results)
                if results.exists()
                else {"experiment": "deep-fcn", "guides": [], "runs": []}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume {path}: not a run folder of deep-fcn: {error}") from error
        folder.results["failed"] = {}
        return folder, config

    def finished(self) -> set[str]:
        """Keys of the finished jobs; a guide counts only while its weights are there."""
        guides = {g["key"] for g in self.results["guides"] if self.weights(g["seed"]).exists()}
        return guides | {r["key"] for r in self.results["runs"]}

    def weights(self, seed: int) -> Path:
        """Where the trained guide of a seed is."""
        return self.path / f"guide-seed{seed}.pt"

    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``; a line cut short by a kill is dropped."""
        path = self.path / "metrics.jsonl"
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def begin(self) -> None:
        """Open ``metrics.jsonl`` with the records of the finished jobs only."""
        finished = self.finished()
        path = self.path / "metrics.jsonl"
        kept = [record for record in self.metrics() if record["key"] in finished]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._metrics = path.open("a", encoding="utf-8")

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append a record."""
        assert self._metrics is not None
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics.flush()

    def add_result(self, kind: str, record: dict[str, Any]) -> None:
        """Store the result of a finished job; ``kind`` is ``"guides"`` or ``"runs"``."""
        others = [r for r in self.results[kind] if r["key"] != record["key"]]
        self.results[kind] = [*others, record]
        write_json(self.path / "results.json", self.results)

    def finish(self, config: Config, failed: dict[str, str]) -> None:
        """Write the results with their summary, the table and the curves."""
        assert self._metrics is not None
        self._metrics.close()
        self.results["failed"] = failed
        self.results["summary"] = summarize(self.results["runs"], config.arms)
        write_json(self.path / "results.json", self.results)
        with atomic_write(self.table) as temporary:
            temporary.write_text(table(config, self.results), encoding="utf-8")
        finished = self.finished()
        metrics = [record for record in self.metrics() if record["key"] in finished]
        with atomic_write(self.path / "curves.png") as temporary:
            plot_curves(config, metrics, temporary)

    def close(self) -> None:
        """Close what is open."""
        if self._metrics is not None:
            self._metrics.close()


def run(folder: RunFolder, config: Config, workers: int) -> dict[str, str]:
    """Run the jobs that the folder lacks; return the reasons of the failed ones by key."""
    if not folder.data.exists():
        generate().save(folder.data)
    tasks = _tasks(folder, config)
    if config.quick:
        print("--quick: a smoke run; its numbers say nothing about guidance", file=sys.stderr)
    print(f"{len(tasks)} jobs, {workers} at a time, in {folder.path}", file=sys.stderr)
    progress = Progress(tasks)
    finished = 0

    def on_epoch(task: Task, record: dict[str, Any]) -> None:
        folder.add_metrics({**_identity(task), **record})

    def on_result(task: Task, result: dict[str, Any]) -> None:
        nonlocal finished
        finished += 1
        kind = "guides" if isinstance(task.job, GuideJob) else "runs"
        folder.add_result(kind, {**_identity(task), **result})
        progress.message(
            f"[{finished}/{len(tasks)}] {task.job.name}: test accuracy "
            f"{100 * result['test_accuracy']:.1f} % (best epoch {result['best_epoch']}, "
            f"{result['seconds']:.0f} s)"
        )

    try:
        folder.begin()
        failed = run_tasks(
            tasks,
            folder.data,
            workers=workers,
            threads=config.threads,
            on_epoch=on_epoch,
            on_result=on_result,
            progress=progress,
        )
        folder.finish(config, failed)
    finally:
        progress.close()
        folder.close()
    return failed


def _tasks(folder: RunFolder, config: Config) -> list[Task]:
    """The jobs still to run: guides first, since others wait for them."""
    finished = folder.finished()
    guides, targets = [], []
    for seed in config.seeds:
        for arm in config.arms:
            trained = arm == "trained"
            key, guide = f"{arm}-seed{seed}", f"guide-seed{seed}"
            if key in finished:
                continue
            weights = str(folder.weights(seed))
            if trained and guide not in finished:
                job = GuideJob(
                    seed=seed, device=config.device, weights=weights, **asdict(config.guide)
                )
                guides.append(Task(guide, job, cost=1.0))
            target = TargetJob(
                arm=arm,
                seed=seed,
                lr=config.lr[arm],
                depth=config.depth,
                width=config.width,
                dropout=config.dropout,
                epochs=config.epochs,
                batch_size=config.batch_size,
                weight=config.weight,
                device=config.device,
                weights=weights if trained else None,
            )
            cost = epoch_cost(arm, config.depth)
            targets.append(Task(key, target, needs=guide if trained else None, cost=cost))
    # Long jobs before short ones, so that the workers end at about the same time.
    targets.sort(key=lambda task: -task.cost)
    return guides + targets


def epoch_cost(arm: str, depth: int) -> float:
    """About the seconds of one epoch, for the order of jobs and the time left.

    Measured on a 2-core x86 CPU with one thread a job at depth 50: 1.1 without a guide, 2.0
    with one. The guide's forward pass and the 14 pairs cost the same at every depth.
    """
    return 1.1 * depth / 50 + (0.0 if arm == "none" else 0.9)


def _identity(task: Task) -> dict[str, Any]:
    """What names a job in the records."""
    job = task.job
    if isinstance(job, GuideJob):
        return {"key": task.key, "seed": job.seed, "lr": job.lr}
    assert isinstance(job, TargetJob)
    return {"key": task.key, "arm": job.arm, "seed": job.seed, "lr": job.lr, "depth": job.depth}


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {
        "pyguide": pyguide.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "mnist1d": version("mnist1d"),
        "cpu": pyguide.backends()["cpu"].detail,
    }
