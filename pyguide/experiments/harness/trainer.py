"""One model trained epoch by epoch, so that it can be stopped and go on: on the CPU, bitwise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyguide.data.splits import Splits
from pyguide.experiments.harness.checkpoint import Checkpoint
from pyguide.experiments.harness.consistency import packed
from pyguide.experiments.harness.experiment import Optimization, Setting
from pyguide.experiments.harness.objectives import Objective
from pyguide.experiments.harness.shares import Processes

__all__ = ["Report", "Trainer"]


class Report(Protocol):
    """Where a job tells of its progress."""

    def epoch(self, record: dict[str, Any]) -> None:
        """The record of an epoch that was just done."""

    def restored(self, records: list[dict[str, Any]]) -> None:
        """The records of the epochs before a checkpoint, of a job that goes on."""

    def note(self, text: str) -> None:
        """Something to show to the user."""


# Between the random streams of processes that train together.
_PROCESS_SEED_OFFSET = 3_000_017

# Steps of an epoch whose parts are timed, after the first one, which has other work: reading
# the times waits for a GPU.
_TIMED_STEPS = 3


class Trainer:
    """Trains a model on an objective, and scores it after every epoch.

    A record holds the epoch's mean of each part of the loss, the norms of their gradients over
    all parameters in the epoch's first batch, the scores, and the mean times of some steps.

    Parameters
    ----------
    setting : Setting
        Metrics.
    model, optimization
        The network, its optimizer and the schedule stepped with it.
    data : Splits
    seed : int
        Of batch order and dropout.
    epochs, batch_size : int
    objective : Objective, optional
        What to minimise; the task's loss alone by default.
    clip : float, optional
        Norm to which the gradient is clipped; None or 0: it is not.
    score_test : bool
        Whether to score the test split too; nothing here depends on the score.
    keep_best : bool
        Whether to keep the weights of the epoch with the lowest validation loss.
    details : callable, optional
        Of the model; what it returns of that epoch is in the result. It is called once, at the end,
        and the model stays as it was in that epoch.
    """

    def __init__(
        self,
        setting: Setting[Any],
        model: nn.Module,
        optimization: Optimization,
        data: Splits,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        objective: Objective | None = None,
        clip: float | None = None,
        score_test: bool = False,
        keep_best: bool = False,
        details: Callable[[nn.Module], dict[str, Any]] | None = None,
    ) -> None:
        self.setting, self.model, self.data = setting, model, data
        self.objective = Objective(setting) if objective is None else objective
        self.optimizer, self.schedule = optimization
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.clip, self.score_test, self.details = clip, score_test, details
        self.keep_best = keep_best or details is not None
        self.processes = Processes()
        self.trained = self.processes.wrapped(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.records: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.best_right: Tensor | None = None
        self.prepared: dict[str, float] | None = None

    def run(
        self,
        report: Report,
        checkpoint: Checkpoint,
        prepare: Callable[[], dict[str, float]] | None = None,
    ) -> dict[str, Any]:
        """Train from the start or the checkpoint; return the scores of the best epoch.

        `prepare` is called before a start, and leaves the random streams as they were; what it
        returns is in the result.

        Raises
        ------
        FloatingPointError
            If a value of an epoch is not finite.
        """
        start = time.perf_counter()
        # Each process has dropout of its own.
        torch.manual_seed(self.seed + _PROCESS_SEED_OFFSET * self.processes.rank)
        state = checkpoint.load(report.note)
        if state is not None:
            self.load_state_dict(state)
            report.restored(self.records)
        elif prepare is not None:
            self.prepared = prepare()
        before = self.records[-1]["seconds"] if self.records else 0.0
        for epoch in range(len(self.records) + 1, self.epochs + 1):
            values, times = self._train_epoch()
            scores, right = self._scores()
            values |= scores
            for key, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{key} became {value} in epoch {epoch}; a lower learning rate may help"
                    )
            seconds = before + time.perf_counter() - start
            timed = {"times": times} if times else {}
            self.records.append({"epoch": epoch, "seconds": seconds, **timed, **values})
            if self._best()["epoch"] == epoch:
                self._keep(right)
            report.epoch(self.records[-1])
            if epoch < self.epochs and self.processes.from_first(checkpoint.is_due):
                state = self.state_dict()
                if self.processes.rank == 0:
                    checkpoint.save(state)
        best = self._best()
        result: dict[str, Any] = {"best_epoch": best["epoch"]}
        result |= {k: v for k, v in best.items() if k.startswith(("val_", "test_"))}
        if self.best_right is not None:
            result["test_right"] = packed(self.best_right)
        if self.details is not None:
            assert self.best_weights is not None
            self.model.load_state_dict(self.best_weights)
            result["details"] = self.processes.from_first(partial(self.details, self.model))
        if self.prepared is not None:
            result["initialization"] = self.prepared
        if self.processes.size > 1:
            result["processes"] = self.processes.size
        return result | {"seconds": self.records[-1]["seconds"]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "best_weights": self.best_weights,
            "best_right": self.best_right,
            "records": self.records,
            "prepared": self.prepared,
            "batch_order": self.generator.get_state(),
            "random": self.processes.gathered(_random_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.objective.load_state_dict(state["objective"])
        self.best_weights, self.best_right = state["best_weights"], state["best_right"]
        self.records, self.prepared = state["records"], state["prepared"]
        self.generator.set_state(state["batch_order"])
        own = state["random"][self.processes.rank]
        torch.set_rng_state(own["cpu"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"])

    def _best(self) -> dict[str, Any]:
        return min(self.records, key=lambda record: record["val_loss"])

    def _keep(self, right: Tensor | None) -> None:
        """Keep what is asked for of the best epoch, which is the last one so far."""
        self.best_right = right
        if self.keep_best:
            weights = self.model.state_dict()
            self.best_weights = {key: value.clone() for key, value in weights.items()}

    def _train_epoch(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the losses and metrics with norms, and times."""
        self.model.train()
        means, norms = _Means(), {}
        times: dict[str, list[float]] = {}
        share = self.processes.share
        batches = self.data.train.shuffled(self.batch_size, self.generator, share)
        for step, (x, y, ids) in enumerate(batches):
            losses = self.objective(self.trained, x, y, ids)
            if step == 0:
                parts = losses.parts.items()
                norms = {f"{name}_grad_norm": self._grad_norm(loss) for name, loss in parts}
            self._update(losses.total)
            if 0 < step <= _TIMED_STEPS:
                for name, seconds in self.objective.times().items():
                    times.setdefault(name, []).append(seconds)
            metrics = self.setting.train_metrics(losses, y)
            means.add({f"train_{name}": value for name, value in metrics.items()})
            means.add({f"{name}_loss": loss for name, loss in losses.parts.items()})
        read = self.processes.mean(means.read())
        return read | norms, {name: sum(v) / len(v) for name, v in times.items()}

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.objective.step()

    def _grad_norm(self, loss: Tensor) -> float:
        """Norm of the loss's gradient over all parameters; the graph stays usable."""
        if not loss.requires_grad:  # A released guidance's term.
            return 0.0
        parameters = list(self.model.parameters())
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        known = [g for g in grads if g is not None]
        self.processes.mean_(known)
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g) for g in known])
        ).item()

    def _scores(self) -> tuple[dict[str, float], Tensor | None]:
        """Scores of the splits, and which samples of the test split are right."""
        return self.processes.from_first(self._evaluate)

    def _evaluate(self) -> tuple[dict[str, float], Tensor | None]:
        splits = {"val": self.data.val} | ({"test": self.data.test} if self.score_test else {})
        scores: dict[str, float] = {}
        right = None
        for name, split in splits.items():
            found = dict(self.setting.evaluate(self.model, split))
            right = found.pop("right", None)
            scores |= {f"{name}_{key}": value for key, value in found.items()}
        return scores, right if self.score_test else None


class _Means:
    """Means of scalar tensors over an epoch, read from the device once."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            self._values.setdefault(key, []).append(value.detach())

    def read(self) -> dict[str, float]:
        return {key: torch.stack(values).mean().item() for key, values in self._values.items()}


def _random_state() -> dict[str, Tensor | None]:
    """Of this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
