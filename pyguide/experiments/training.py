"""One job of an experiment: train a guide, or train a target in one arm with one seed.

A job's result depends only on its fields and the data, not on the jobs beside it. Arms of
the same seed share the target's initialisation, the batch order and, until their weights
part, the dropout masks, so their differences can be taken pair by pair.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyguide.experiments.files import atomic_write
from pyguide.experiments.mnist1d import Data
from pyguide.experiments.networks import DeepFCN, ResNet1D
from pyguide.guidance import Guidance

__all__ = ["GuideJob", "TargetJob"]

# Offset between the seeds of a run's target and its guide, so that the two networks
# and the runs of neighbouring seeds draw from different streams.
_GUIDE_SEED_OFFSET = 1_000_003

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class GuideJob:
    """Train a ResNet1D with AdamW under a one-cycle learning rate; keep its best epoch.

    Attributes
    ----------
    seed : int
        Seed of initialisation and batch order.
    epochs, lr, batch_size
        Length, peak learning rate and batch size.
    weights : str
        File that receives the state dict of the epoch with the lowest validation loss.
    """

    seed: int
    epochs: int
    lr: float
    batch_size: int
    device: str
    weights: str

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return f"guide seed {self.seed}"

    def run(self, data: Data, report: Report) -> dict[str, Any]:
        """Train, report every epoch, save the weights and return the result."""
        splits = _Splits(data, self.device)
        guide = _new_guide(self.seed).to(self.device)
        steps = self.epochs * splits.steps(self.batch_size)
        optimizer = torch.optim.AdamW(guide.parameters(), lr=self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)

        def train_epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
            totals = _Means()
            for x, y in batches:
                logits = guide(x)
                loss = F.cross_entropy(logits, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                totals.add(task_loss=loss, train_accuracy=_accuracy(logits, y))
            return totals.means()

        result = _train(guide, train_epoch, splits, self.seed, self.epochs, self.batch_size, report)
        with atomic_write(Path(self.weights)) as temporary:
            torch.save(guide.state_dict(), temporary)
        return result


@dataclass(frozen=True)
class TargetJob:
    """Train a DeepFCN with Adam in one arm: no guide, a trained guide or an untrained one.

    The records hold the epoch's mean task and guidance terms, and the norms of both terms'
    gradients over all parameters in the epoch's first batch.

    Attributes
    ----------
    arm : str
        ``"none"``, ``"trained"`` or ``"untrained"``.
    seed : int
        Seed of initialisation, batch order, dropout and the untrained guide.
    weight : float
        Factor of the guidance term.
    weights : str or None
        State dict of the trained guide; only the arm ``"trained"`` reads it.
    """

    arm: str
    seed: int
    lr: float
    depth: int
    width: int
    dropout: float
    epochs: int
    batch_size: int
    weight: float
    device: str
    weights: str | None = None

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return f"arm {self.arm} seed {self.seed} depth {self.depth} lr {self.lr:g}"

    def run(self, data: Data, report: Report) -> dict[str, Any]:
        """Train, report every epoch and return the result."""
        splits = _Splits(data, self.device)
        torch.manual_seed(self.seed)
        target = DeepFCN(self.depth, width=self.width, dropout=self.dropout).to(self.device)
        optimizer = torch.optim.Adam(target.parameters(), lr=self.lr, fused=True)
        guidance = self._guidance(target)

        def train_epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
            totals, norms = _Means(), {}
            for step, (x, y) in enumerate(batches):
                with nullcontext() if guidance is None else guidance.capture():
                    logits = target(x)
                losses = {"task": F.cross_entropy(logits, y)}
                if guidance is not None:
                    losses["guidance"] = guidance.loss(x)
                if step == 0:
                    norms = {f"{k}_grad_norm": _grad_norm(v, target) for k, v in losses.items()}
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimizer.step()
                if guidance is not None:
                    guidance.step()
                totals.add(train_accuracy=_accuracy(logits, y))
                totals.add(**{f"{name}_loss": loss for name, loss in losses.items()})
            return totals.means() | norms

        return _train(target, train_epoch, splits, self.seed, self.epochs, self.batch_size, report)

    def _guidance(self, target: nn.Module) -> Guidance | None:
        if self.arm == "none":
            return None
        guide = _new_guide(self.seed)
        if self.arm == "trained":
            assert self.weights is not None
            guide.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True))
        return Guidance(
            target,
            guide.to(self.device),
            pairs="even",
            distance="cka",
            weight=self.weight,
        )


class _Splits:
    """The data's splits as tensors on the device."""

    def __init__(self, data: Data, device: str) -> None:
        def pair(x: np.ndarray | None, y: np.ndarray | None) -> tuple[Tensor, Tensor] | None:
            if x is None or y is None:
                return None
            return torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)

        train, val = pair(data.x_train, data.y_train), pair(data.x_val, data.y_val)
        assert train is not None and val is not None
        self.train, self.val, self.test = train, val, pair(data.x_test, data.y_test)

    def steps(self, batch_size: int) -> int:
        return len(self.train[1]) // batch_size

    def batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches in a new order; CKA depends on the batch size, so no smaller last one."""
        x, y = self.train
        order = torch.randperm(len(y), generator=generator).to(y.device)
        for step in range(self.steps(batch_size)):
            batch = order[step * batch_size : (step + 1) * batch_size]
            yield x[batch], y[batch]


class _Means:
    """Means of scalar tensors over an epoch, read from the device once."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        for key, value in values.items():
            self._values.setdefault(key, []).append(value.detach())

    def means(self) -> dict[str, float]:
        return {key: torch.stack(values).mean().item() for key, values in self._values.items()}


def _new_guide(seed: int) -> ResNet1D:
    """An initialised guide that leaves the global random stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + _GUIDE_SEED_OFFSET)
        return ResNet1D(width=16)


def _train(
    model: nn.Module,
    train_epoch: Callable[[Iterable[tuple[Tensor, Tensor]]], dict[str, float]],
    splits: _Splits,
    seed: int,
    epochs: int,
    batch_size: int,
    report: Report,
) -> dict[str, Any]:
    """Run all epochs, restore the weights of the best validation epoch, score the test set once."""
    start = time.perf_counter()
    # On the CPU on every device, so that the batch order does not depend on it.
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    best: dict[str, Any] = {"val_loss": math.inf}
    for epoch in range(1, epochs + 1):
        model.train()
        metrics = train_epoch(splits.batches(batch_size, generator))
        val_loss, val_accuracy = _evaluate(model, splits.val)
        metrics |= {"val_loss": val_loss, "val_accuracy": val_accuracy}
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{key} became {value} in epoch {epoch}; a lower learning rate may help"
                )
        report({"epoch": epoch, "seconds": time.perf_counter() - start, **metrics})
        if val_loss < best["val_loss"]:
            best = {"best_epoch": epoch, "val_loss": val_loss, "val_accuracy": val_accuracy}
            weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    if splits.test is not None:
        best["test_loss"], best["test_accuracy"] = _evaluate(model, splits.test)
    return best | {"seconds": time.perf_counter() - start}


@torch.no_grad()
def _evaluate(model: nn.Module, split: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode."""
    x, y = split
    model.eval()
    logits = model(x)
    correct = int((logits.argmax(dim=1) == y).sum())
    return F.cross_entropy(logits, y).item(), correct / len(y)


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Accuracy on the device, without waiting for it."""
    return (logits.argmax(dim=1) == y).float().mean()


def _grad_norm(loss: Tensor, model: nn.Module) -> float:
    """Norm of the loss's gradient over all parameters; the graph stays usable."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [torch.linalg.vector_norm(g) for g in grads if g is not None]
    return torch.linalg.vector_norm(torch.stack(norms)).item()
