"""The deep-FCN experiment: three arms, several seeds, one run folder.

The paper's Deep FCN guided by a ResNet-18 on ImageNet (arXiv 2410.20035), made small:
MNIST-1D in place of ImageNet, a 1-D ResNet in place of the ResNet-18.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

import pyguide
from pyguide.experiments.config import QUICK, Config, check_device
from pyguide.experiments.errors import UserError
from pyguide.experiments.files import atomic_write, lock, read_json, write_json, writing
from pyguide.experiments.mnist1d import Data, generate
from pyguide.experiments.report import plot_curves, summarize, table
from pyguide.experiments.runner import Progress, Task, run_tasks, worker_count
from pyguide.experiments.training import GuideJob, TargetJob

__all__ = ["RunFolder", "epoch_cost", "main", "run", "versions"]


def main(args: argparse.Namespace) -> int:
    """Run ``pyguide train deep-fcn`` with parsed arguments; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done; or when the folder cannot be written.
    """
    options = {field.name for field in fields(Config)} | {"out", "resume", "workers"}
    given = {name: value for name, value in vars(args).items() if name in options}
    workers = given.pop("workers", None)
    resume = given.pop("resume", None)
    if resume is not None:
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise UserError(f"--resume takes its configuration from the folder: drop {names}")
        path = Path(resume)
        config = RunFolder.read_config(path)
    else:
        path = Path(given.pop("out", f"runs/deep-fcn-{datetime.now():%Y%m%d-%H%M%S}"))
        config = (QUICK if given.pop("quick", False) else Config()).changed(given)
    workers = worker_count(workers, config.threads)
    check_device(config.device)
    folder = RunFolder.create(path, config) if resume is None else RunFolder.open(path)
    try:
        failed = run(folder, config, workers)
    except KeyboardInterrupt:
        print(
            f"interrupted; to continue: pyguide train deep-fcn --resume {folder.path}",
            file=sys.stderr,
        )
        return 130
    finally:
        folder.close()
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
    """The files of one run, of which this process is the only writer: it holds ``.lock``.

    ``metrics.jsonl`` has a line an epoch of every job, flushed; ``results.json`` has the
    finished jobs and is rewritten after each; the table and the curves come at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data.npz"
        self.table = path / "table.md"
        self.results: dict[str, Any] = {}
        self._metrics: TextIO | None = None
        self._lock: TextIO | None = None

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Make and lock a new folder; UserError if it exists and is not empty."""
        folder = cls(path)
        folder.results = {"experiment": "deep-fcn", "guides": [], "runs": [], "failed": {}}
        with writing(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(
                    f"--out {path} exists: choose another, or continue it with --resume {path}"
                )
            path.mkdir(parents=True, exist_ok=True)
            folder._lock = lock(path / ".lock")
            write_json(
                path / "config.json",
                {"experiment": "deep-fcn", "config": config.to_json(), "versions": versions()},
            )
        return folder

    @classmethod
    def read_config(cls, path: Path) -> Config:
        """The configuration of a folder; UserError if it is none of this experiment."""
        with _reading(path):
            return Config.from_json(_read(path / "config.json", "config")["config"])

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Lock and read a folder to continue it; UserError if it is none or is in use."""
        cls.read_config(path)  # Nothing is written into a folder that is none.
        folder = cls(path)
        with writing(path):
            folder._lock = lock(path / ".lock")
        results = path / "results.json"
        guides, runs = [], []
        try:
            with _reading(path):
                if results.exists():
                    value = _read(results, "guides", "runs")
                    guides = _records(value["guides"], "key", "seed", "test_accuracy")
                    runs = _records(value["runs"], "key", "arm", "seed", "test_accuracy")
        except UserError:
            folder.close()
            raise
        folder.results = {"experiment": "deep-fcn", "guides": guides, "runs": runs, "failed": {}}
        return folder

    def finished(self) -> set[str]:
        """Keys of the finished jobs; a guide counts only while its weights are there."""
        guides = {g["key"] for g in self.results["guides"] if self.weights(g["seed"]).exists()}
        return guides | {r["key"] for r in self.results["runs"]}

    def weights(self, seed: int) -> Path:
        """Where the trained guide of a seed is."""
        return self.path / f"guide-seed{seed}.pt"

    def metrics(self) -> list[dict[str, Any]]:
        """The finished jobs' records of ``metrics.jsonl``; a damaged line is dropped.

        A kill can cut a line short.
        """
        path, finished = self.path / "metrics.jsonl", self.finished()
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        records = []
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return [record for record in _records(records, "key") if record["key"] in finished]

    def begin(self) -> None:
        """Make the data, and open ``metrics.jsonl`` with the records of the finished jobs."""
        with writing(self.path):
            if not self.data.exists():
                generate().save(self.data)
            path = self.path / "metrics.jsonl"
            text = "".join(json.dumps(record) + "\n" for record in self.metrics())
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            self._metrics = path.open("a", encoding="utf-8")
        try:
            complete = Data.load(self.data).x_test is not None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            complete = False
        if not complete:
            raise UserError(f"{self.data} is damaged: delete it, and it is generated again")

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append a record."""
        assert self._metrics is not None
        with writing(self.path):
            self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
            self._metrics.flush()

    def add_result(self, kind: str, record: dict[str, Any]) -> None:
        """Store the result of a finished job; ``kind`` is ``"guides"`` or ``"runs"``."""
        others = [r for r in self.results[kind] if r["key"] != record["key"]]
        self.results[kind] = [*others, record]
        with writing(self.path):
            write_json(self.path / "results.json", self.results)

    def finish(self, config: Config, failed: dict[str, str]) -> None:
        """Write the results with their summary, the table and the curves."""
        for kind in ("guides", "runs"):
            self.results[kind].sort(key=lambda record: record["key"])
        self.results["failed"] = failed
        self.results["summary"] = summarize(self.results["runs"], config.arms)
        with writing(self.path):
            write_json(self.path / "results.json", self.results)
            with atomic_write(self.table) as temporary:
                temporary.write_text(table(config, self.results), encoding="utf-8")
            with atomic_write(self.path / "curves.png") as temporary:
                plot_curves(config, self.metrics(), temporary)

    def close(self) -> None:
        """Close what is open, and give up the lock."""
        for file in (self._metrics, self._lock):
            if file is not None:
                with suppress(OSError):  # A full disk has been reported by add_metrics.
                    file.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error about the contents of a run folder into a UserError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"--resume {path}: not a run folder of deep-fcn: {error}") from error


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object of this experiment that has the keys, or raise ValueError."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("experiment") != "deep-fcn":
        raise ValueError(f"{path.name} is of something else")
    for key in keys:
        if key not in value:
            raise ValueError(f"{path.name} lacks {key!r}")
    return value


def _records(values: list[Any], *names: str) -> list[dict[str, Any]]:
    """The values that are a job's record with these fields."""
    return [
        value
        for value in values
        if isinstance(value, dict)
        and all(name in value for name in names)
        and isinstance(value["key"], str)
    ]


def run(folder: RunFolder, config: Config, workers: int) -> dict[str, str]:
    """Run the jobs that the folder lacks; return the reasons of the failed ones by key."""
    folder.begin()
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
