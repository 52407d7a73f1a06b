"""A candidate's training steps in one process."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyguide
from pyguide.guidance import LargeBatch
from training_steps.settings import NETWORKS, Candidate, Setting, spread_pairs


class Training:
    """A candidate's training in this process.

    Parameters
    ----------
    rank : int
        Of the candidate's processes; each takes an even part of the samples.
    """

    def __init__(self, setting: Setting, candidate: Candidate, rank: int, chunk: int) -> None:
        torch.manual_seed(0)
        case = NETWORKS[setting.networks]
        self.model = case.target()
        if candidate.processes > 1:
            self.model = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.guidance = None
        if candidate.step != "unguided":
            self.guidance = pyguide.Guidance(
                self.model,
                case.guide(),
                "even" if setting.pairs is None else spread_pairs(setting.pairs),
                example=torch.randn(2, *case.shape),
                process_group="local" if candidate.step == "local" else None,
            )
            self.chunked = LargeBatch(self.guidance, chunk)
        self._step: Callable[[Tensor, Tensor], None]
        self._step = getattr(self, f"_{candidate.step}")
        torch.manual_seed(rank)
        n = setting.n // candidate.processes
        self.batch = torch.randn(n, *case.shape), torch.randint(10, (n,))

    def step(self, samples: int | None = None) -> None:
        """With so many of the samples, or all."""
        x, y = self.batch
        self._step(x[:samples], y[:samples])
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _task(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def _unguided(self, x: Tensor, y: Tensor) -> None:
        self._task(x, y).backward()

    def _guided(self, x: Tensor, y: Tensor) -> None:
        assert self.guidance is not None
        with self.guidance.capture():
            task = self._task(x, y)
        self.guidance.total_loss(task, x).backward()
        self.guidance.step()

    _local = _guided

    def _chunked(self, x: Tensor, y: Tensor) -> None:
        assert self.guidance is not None
        self.chunked.backward(self._task, x, y)
        self.guidance.step()
