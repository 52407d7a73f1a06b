"""Jobs that an experiment has in common with the one that it extends: done once."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pyguide.experiments.harness.config import GRID_FIELDS, Config
from pyguide.experiments.harness.experiment import Experiment
from pyguide.experiments.harness.folder import RunFolder
from pyguide.experiments.harness.packages import versions
from pyguide.files import read_json, writing

__all__ = ["begin_with_shared_jobs", "shared_jobs"]


def begin_with_shared_jobs(experiment: Experiment, scale: str, config: Config, out: Path) -> bool:
    """Make the run folder in `out` with jobs of the folder of the experiment that is extended.

    Only those of the same arms and seeds are copied, and only where settings and versions are the
    same.

    Returns
    -------
    bool
        Whether the folder was made.
    """
    base = experiment.extends
    if base is None or not _is_same(experiment, base, scale, config, out / base.name):
        return False
    path, other = out / experiment.name, out / base.name
    RunFolder.create(path, experiment, scale, config, 0.0).close()
    theirs = base.scales[scale].arms
    arms = {arm.name for arm in experiment.scales[scale].variants(config) if arm in theirs}
    seeds = {config.sweep_seed, *config.seeds}
    count = 0
    with writing(path):
        for folder in ("jobs", "guides"):
            (path / folder).mkdir()
        for file in sorted((other / "jobs").glob("*.jsonl")):
            job = _job(file)
            if job is None:
                continue
            weights = other / "guides" / f"{file.stem}.pt"
            is_guide = job["arm"] is None and weights.is_file()
            if job["seed"] in seeds and (is_guide or job["arm"] in arms):
                # The weights first: a guide's job without them would be done again.
                if is_guide:
                    shutil.copy(weights, path / "guides")
                shutil.copy(file, path / "jobs")
                count += 1
    print(f"{count} jobs are those of {base.name}", file=sys.stderr)
    return True


def shared_jobs(experiment: Experiment, path: Path) -> int:
    """How many jobs of a run folder are those of the experiment that is extended, beside it."""
    if experiment.extends is None:
        return 0
    other = path.parent / experiment.extends.name / "jobs"
    pairs = ((file, other / file.name) for file in (path / "jobs").glob("*.jsonl"))
    return sum(twin.is_file() and twin.read_bytes() == file.read_bytes() for file, twin in pairs)


def _is_same(
    experiment: Experiment, base: Experiment, scale: str, config: Config, other: Path
) -> bool:
    """Whether the folder `other` was made with these settings and versions."""
    if not (other / "config.json").exists():
        return False
    their_scale, theirs = RunFolder.read_config(other, base)
    used = versions(experiment.scales[scale].packages)
    return (
        (their_scale, theirs.sweep_seed) == (scale, config.sweep_seed)
        and _settings(theirs) == _settings(config)
        and read_json(other / "config.json")["versions"] == used
    )


def _job(file: Path) -> dict[str, Any] | None:
    """What a job was; None where a kill cut its file."""
    try:
        with file.open(encoding="utf-8") as lines:
            job: dict[str, Any] = json.loads(next(lines))["job"]
    except (ValueError, LookupError, StopIteration):
        return None
    return job


def _settings(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.to_json().items() if name not in GRID_FIELDS}
