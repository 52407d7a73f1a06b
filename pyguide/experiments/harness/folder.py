"""The files of one run, and their reading when it goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.experiment import Experiment
from pyguide.experiments.harness.jobs import Files
from pyguide.experiments.harness.packages import versions
from pyguide.experiments.harness.progress import Job
from pyguide.files import atomic_write, lock, read_json, write_json, writing

__all__ = ["RunFolder", "pictures"]


@dataclass(frozen=True)
class _Log:
    """A finished job: what it was, its record of every epoch, and its result."""

    identity: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Log | None:
        """The log of a finished job; None for one that was cut or changed."""
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            identity, records, result = lines[0]["job"], lines[1:-1], lines[-1]["result"]
            if [record["epoch"] for record in records] != list(range(1, len(records) + 1)):
                return None
            return cls(identity, records, result)
        except (ValueError, LookupError, TypeError):
            return None

    def text(self) -> str:
        lines = [{"job": self.identity}, *self.records, {"result": self.result}]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def pictures(path: Path) -> list[Path]:
    """The pictures of a run folder, the curves first."""
    return sorted(path.glob("*.png"), key=lambda file: (file.stem != "curves", file.name))


class RunFolder:
    """The folder of a run, of which this process is the only writer: it holds ``.lock``.

    =================== ============================================================
    ``config.json``     what to run, and the versions that began it
    ``jobs/``           a file a job: a line an epoch, flushed, and its result last
    ``checkpoints/``    states of unfinished jobs
    ``guides/``         weights of the trained guides
    ``data/``           what is slow to make
    ``results.json``    results of the finished jobs and their summary
    ``table.md``        the report
    ``curves.png``      its picture
    ``differences.png`` the arms against their baselines
    ``*.png``           what else the experiment draws
    =================== ============================================================
    """

    def __init__(self, path: Path, checkpoint_seconds: float) -> None:
        self.path = path
        self.table = path / "table.md"
        self.checkpoint_seconds = checkpoint_seconds
        self._logs: dict[str, _Log] = {}
        self._running: dict[str, list[dict[str, Any]]] = {}
        self._lock: TextIO | None = None
        self._is_new = False

    def picture(self, name: str) -> Path:
        """The file of a picture."""
        return self.path / f"{name}.png"

    @classmethod
    def create(
        cls, path: Path, experiment: Experiment, scale: str, config: Config, seconds: float
    ) -> RunFolder:
        """Make and lock a new folder; UserError if it exists and is not empty."""
        folder = cls(path, seconds)
        with writing(path):
            # A kill may have left the lock alone.
            if path.exists() and (
                not path.is_dir() or any(entry.name != ".lock" for entry in path.iterdir())
            ):
                raise UserError(
                    f"--out {path} exists: choose another, or continue it with --resume {path}"
                )
            folder._is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            folder._lock = lock(path / ".lock")
            names = {"experiment": experiment.name, "scale": scale}
            used = versions(experiment.scales[scale].packages)
            write_json(
                path / "config.json", {**names, "config": config.to_json(), "versions": used}
            )
        return folder

    @classmethod
    def read_config(cls, path: Path, experiment: Experiment) -> tuple[str, Config]:
        """Scale and configuration of a folder; UserError if it is none of this experiment."""
        with _reading(path, experiment):
            value = read_json(path / "config.json")
            if not isinstance(value, dict) or value.get("experiment") != experiment.name:
                raise ValueError("config.json is of something else")
            scale = value["scale"]
            setting = experiment.scales[scale]
            return scale, setting.checked(type(setting.config).from_json(value["config"]))

    @classmethod
    def open(cls, path: Path, experiment: Experiment, seconds: float) -> RunFolder:
        """Lock and read a folder to continue it; UserError if it is none or is in use."""
        # Nothing is written into a folder that is none.
        scale, _ = cls.read_config(path, experiment)
        _warn_of_other_versions(path, versions(experiment.scales[scale].packages))
        folder = cls(path, seconds)
        with writing(path):
            folder._lock = lock(path / ".lock")
            for unfinished in path.rglob(".*.tmp"):  # Of a write that a kill cut short.
                unfinished.unlink()
            for file in (path / "jobs").glob("*.jsonl"):
                log = _Log.read(file)
                if log is not None:
                    folder._logs[file.stem] = log
        return folder

    def discard(self) -> None:
        """Remove what :meth:`create` and the data made, if no job has begun."""
        if (self.path / "jobs").exists():
            return
        shutil.rmtree(self.cache, ignore_errors=True)
        with suppress(OSError):  # It cannot be written, or somebody has put something into it.
            for name in ("config.json", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            if self._is_new:
                self.path.rmdir()

    @property
    def cache(self) -> Path:
        """The folder of the data."""
        return self.path / "data"

    def files(self, key: str, guide: str) -> Files:
        """The files of a job and of the guide that it trains or uses."""
        return Files(
            cache=self.cache,
            checkpoint=self.path / "checkpoints" / f"{key}.pt",
            checkpoint_seconds=self.checkpoint_seconds,
            guide=self.path / "guides" / f"{guide}.pt",
        )

    def finished(self, key: str, job: Job) -> bool:
        """Whether the folder has the result of exactly this job."""
        log = self._logs.get(key)
        return log is not None and log.identity == job.identity

    def result(self, key: str) -> dict[str, Any]:
        """The result of a finished job."""
        return self._logs[key].result

    def records(self, key: str) -> list[dict[str, Any]]:
        """The records of a finished job, one an epoch."""
        return self._logs[key].records

    def add_epoch(self, key: str, job: Job, record: dict[str, Any]) -> None:
        """Append the record of a running job to its file."""
        record = _rounded(record)
        records = [] if record["epoch"] == 1 else self._running[key]
        self._running[key] = [*records, record]
        path = self._job_file(key)
        with writing(self.path):
            if not records:
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps({"job": job.identity}) + "\n", encoding="utf-8")
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def add_result(self, key: str, job: Job, result: dict[str, Any]) -> None:
        """Write the file of a finished job as a whole, and drop its checkpoint."""
        log = _Log(job.identity, self._running.pop(key, []), result)
        path = self._job_file(key)
        with writing(self.path):
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_text(log.text(), encoding="utf-8")
            self.files(key, key).checkpoint.unlink(missing_ok=True)
        self._logs[key] = log

    def write_results(self, results: dict[str, Any]) -> None:
        """Replace ``results.json``."""
        with writing(self.path):
            write_json(self.path / "results.json", results)

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self._lock.close()

    def _job_file(self, key: str) -> Path:
        return self.path / "jobs" / f"{key}.jsonl"


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: records are many, and are drawn and averaged."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


@contextmanager
def _reading(path: Path, experiment: Experiment) -> Iterator[None]:
    """Turn an error about the contents of a run folder into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--resume {path}: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        name = experiment.name
        raise UserError(f"--resume {path}: not a run folder of {name}: {error}") from error


def _warn_of_other_versions(path: Path, now: dict[str, str | None]) -> None:
    before = read_json(path / "config.json").get("versions", {})
    for name, version in now.items():
        if before.get(name) != version:
            print(
                f"{path} began with {name} {before.get(name)}, this is {version}: the runs may "
                "not compare",
                file=sys.stderr,
            )
