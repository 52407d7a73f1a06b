"""The jobs of an experiment: train a guide, or a target in one arm with one seed.

A job's result depends only on its fields and the data, not on the jobs beside it. Arms of
the same seed share the target's initialisation, the batch order and, until their weights
part, the dropout masks, so their differences can be taken pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.data.splits import Split, Splits
from pyguide.experiments.harness.checkpoint import Checkpoint
from pyguide.experiments.harness.config import GRID_FIELDS, Config, target_only_fields
from pyguide.experiments.harness.experiment import Arm, Setting
from pyguide.experiments.harness.objectives import Distilled, Guided, Objective
from pyguide.experiments.harness.shares import Processes
from pyguide.experiments.harness.trainer import Report, Trainer
from pyguide.torch_files import load_tensors, save_tensors

__all__ = ["Files", "GuideJob", "TargetJob", "arm_config"]

# Offset between the seeds of a run's target and its guide, so that the two networks
# and the runs of neighbouring seeds draw from different streams.
_GUIDE_SEED_OFFSET = 1_000_003


@dataclass(frozen=True)
class Files:
    """Where a job reads and writes.

    Attributes
    ----------
    cache : Path
        Folder of the data.
    checkpoint : Path
        The job's own checkpoint.
    checkpoint_seconds : float
        Least time between two checkpoints.
    guide : Path
        Weights of the trained guide.
    """

    cache: Path
    checkpoint: Path
    checkpoint_seconds: float
    guide: Path


@dataclass(frozen=True)
class GuideJob:
    """Train a guide and save the weights of the epoch with the lowest validation loss.

    Attributes
    ----------
    seed : int
        Seed of initialisation and batch order.
    score_test : bool
        Whether to score the test split.
    """

    setting: Setting[Any]
    config: Config
    seed: int
    score_test: bool
    files: Files

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return f"guide seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Number of records to expect."""
        return self.config.guide_epochs

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, as JSON types."""
        without = target_only_fields(self.config)
        return {"arm": None} | _identity(self.config, self.seed, self.score_test, without)

    def run(self, report: Report) -> dict[str, Any]:
        """Train, save the weights and return the result."""
        config = self.config
        data = self.setting.data(config, self.files.cache)
        guide = _new_guide(self.setting, config, data, self.seed)
        steps = len(data.train) // config.guide_batch_size
        trainer = Trainer(
            self.setting,
            guide,
            self.setting.guide_optimizer(guide, config, steps),
            data,
            seed=self.seed,
            epochs=config.guide_epochs,
            batch_size=config.guide_batch_size,
            clip=config.clip if self.setting.clips_guide else None,
            score_test=self.score_test,
            keep_best=True,
        )
        result = trainer.run(report, _checkpoint(self))
        if trainer.processes.rank == 0:
            save_tensors(self.files.guide, trainer.best_weights)
        return result


@dataclass(frozen=True)
class TargetJob:
    """Train the target in one arm.

    Attributes
    ----------
    arm : Arm
    seed : int
        Seed of initialisation, batch order, dropout and the untrained guide.
    lr : float
    sweep : bool
        Whether this is a run of a sweep: no test scores, and divergence is its result.
    """

    setting: Setting[Any]
    config: Config
    arm: Arm
    seed: int
    lr: float
    sweep: bool
    files: Files

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return (
            f"{'sweep, ' if self.sweep else ''}arm {self.arm.name} seed {self.seed} lr {self.lr:g}"
        )

    @property
    def epochs(self) -> int:
        """Number of records to expect."""
        return self.config.epochs

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, as JSON types."""
        own = {"arm": self.arm.name, "lr": self.lr}
        return own | _identity(self.config, self.seed, not self.sweep)

    def run(self, report: Report) -> dict[str, Any]:
        """Train and return the result; of a sweep's run also ``{"diverged": reason}``."""
        config = self.config
        data = self.setting.data(config, self.files.cache)
        torch.manual_seed(self.seed)
        target = self.setting.target(config, data).to(config.device)
        guide = self._guide(data)
        steps = len(data.train) // config.batch_size
        optimization = self.setting.target_optimizer(target, config, self.lr, steps)
        trainer = Trainer(
            self.setting,
            target,
            optimization,
            data,
            seed=self.seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            objective=self._objective(target, guide, data),
            clip=config.clip,
            score_test=not self.sweep,
            details=self._details(data),
        )
        try:
            return trainer.run(report, _checkpoint(self), self._preparation(target, guide, data))
        except FloatingPointError as error:
            if self.sweep:
                return {"diverged": str(error)}
            raise

    def _guide(self, data: Splits) -> nn.Module | None:
        if self.arm.guide == "none":
            return None
        guide = _new_guide(self.setting, self.config, data, self.seed)
        if self.arm.guide == "trained":
            given = self.config.guide_weights
            guide.load_state_dict(load_tensors(self.files.guide if given is None else Path(given)))
        return guide

    def _objective(self, target: nn.Module, guide: nn.Module | None, data: Splits) -> Objective:
        setting, arm = self.setting, self.arm
        if guide is None or arm.method == "initialization":
            return Objective(setting)
        if arm.method == "distillation":
            return Distilled(setting, guide, **arm.options)
        cache = setting.guide_cache(self.config, data)
        guidance = setting.guidance(target, guide, self.config, arm, cache)
        if cache is not None:
            # Before the first step, in an order of its own: a job that goes on has the same bits.
            cache.fill(guidance, _numbered(data.train))
        return Guided(setting, guidance)

    def _details(self, data: Splits) -> Callable[[nn.Module], dict[str, Any]] | None:
        # The model of the best epoch is kept only for what asks for it.
        if self.sweep or type(self.setting).details is Setting.details:
            return None
        return lambda model: self.setting.details(model, self.config, data)

    def _preparation(
        self, target: nn.Module, guide: nn.Module | None, data: Splits
    ) -> Callable[[], dict[str, float]] | None:
        """What is done to the target before its training."""
        if guide is None or self.arm.method != "initialization":
            return None

        def align() -> dict[str, float]:
            device = torch.device(self.config.device)
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                guidance = self.setting.guidance(target, guide, self.config, self.arm)
                record = self.setting.initialize(guidance, self.config, self.arm, data, self.seed)
                guidance.close()
            return record

        return align


def _numbered(split: Split) -> Iterator[tuple[Tensor, Any]]:
    """The samples of a split with their positions."""
    start = 0
    for x, y in split.batches():
        yield torch.arange(start, start + len(y)), x
        start += len(y)


def _new_guide(setting: Setting[Any], config: Config, data: Splits, seed: int) -> nn.Module:
    """An initialised guide that leaves the global random stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + _GUIDE_SEED_OFFSET)
        return setting.guide(config, data).to(config.device)


def _identity(
    config: Config, seed: int, score_test: bool, without: Collection[str] = ()
) -> dict[str, Any]:
    values = {
        k: v for k, v in config.to_json().items() if k not in GRID_FIELDS and k not in without
    }
    return {"seed": seed, "score_test": score_test, "config": values}


def _checkpoint(job: GuideJob | TargetJob) -> Checkpoint:
    size = Processes().size
    together = {"processes": size} if size > 1 else {}
    identity = job.identity | together
    return Checkpoint(job.files.checkpoint, identity, job.files.checkpoint_seconds)


def arm_config(config: Config, arm: Arm) -> Config:
    """The configuration of an arm's jobs."""
    return replace(config, **arm.changes)
