"""What guided steps log: the parts of their loss, and their times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.distances import Distance
from pyguide.guidance.timing import StepClock

__all__ = ["LossRecord", "StepLogs", "grad_norm"]


@dataclass
class LossRecord:
    """The parts of one loss. Tensors are detached scalars, on their device."""

    weight: float
    #: The weighted guidance term.
    guidance: Tensor
    #: (P,), None where the weight was 0.
    distances: Tensor | None = None
    task: Tensor | None = None
    guidance_grad_norm: Tensor | None = None
    task_grad_norm: Tensor | None = None
    #: Optimizer steps before it; set once it is over.
    step: int | None = None

    def as_dict(
        self, step: int, distance: str, pairs: Sequence[tuple[str, str]]
    ) -> dict[str, Tensor | float | int]:
        """By name. `step` is the present one; `distance` and `pairs` name the distances."""
        values: dict[str, Tensor | float | int | None] = {
            "guidance/loss": self.guidance,
            "guidance/task_loss": self.task,
            "guidance/grad_norm": self.guidance_grad_norm,
            "guidance/task_grad_norm": self.task_grad_norm,
            "guidance/weight": self.weight,
            "guidance/step": step if self.step is None else self.step,
        }
        if self.distances is not None:
            seen: Counter[str] = Counter()
            for (target, guide), value in zip(pairs, self.distances.unbind(), strict=True):
                name = f"guidance/{distance}/{target}~{guide}"
                seen[name] += 1
                values[name if seen[name] == 1 else f"{name}#{seen[name]}"] = value
        return {name: value for name, value in values.items() if value is not None}


def grad_norm(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Norm of the gradient of `loss` over all `parameters`; the graph is kept."""
    if not loss.requires_grad:
        return torch.zeros_like(loss)
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([g for g in gradients if g is not None])


class StepLogs(ABC):
    """The part of :class:`pyguide.Guidance` that users log.

    Parameters
    ----------
    target : nn.Module
        The network whose steps are timed.
    timed : bool
        Whether they are.
    """

    distance: Distance
    pairs: list[tuple[str, str]] | None

    def __init__(self, target: nn.Module, timed: bool) -> None:
        self._record: LossRecord | None = None
        self._clock = StepClock(target) if timed else None

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps taken."""

    @property
    def last(self) -> Tensor | None:
        """(P,) detached distances of the last :meth:`loss`, in the order of `pairs`."""
        return None if self._record is None else self._record.distances

    def log_dict(self) -> dict[str, Tensor | float | int]:
        """The parts of the last loss by name, without waiting for the device.

        Keys are ``guidance/loss`` (the weighted term), ``guidance/weight``,
        ``guidance/step`` and ``guidance/<distance>/<target path>~<guide path>``, which ends
        in ``#2`` for the second pair of the same two layers; ``<distance>`` is its
        :attr:`~pyguide.distances.Distance.name`, such as "rsa(euclidean)". After
        :meth:`total_loss` also ``guidance/task_loss`` and, where it was asked for them,
        ``guidance/grad_norm`` and ``guidance/task_grad_norm``. Weight and step are numbers,
        the rest are detached scalars on their device.

        Empty before the first loss, and after a :meth:`loss` that follows release.
        """
        if self._record is None:
            return {}
        return self._record.as_dict(self.steps, self.distance.name, self.pairs or ())

    def times(self) -> dict[str, float]:
        """The time that guidance took of the last step; needs ``timed=True``.

        A step lasts from the first :meth:`capture` to :meth:`step`. On CUDA, waits for the
        device to finish it.

        Returns
        -------
        dict of str to float
            ``guidance/seconds/<part>`` for the parts "guide" (its forward pass),
            "distances", "backward" (of the distances) and "step" (the whole), and
            ``guidance/time_share``, the first three's share of the step. Empty before the
            first :meth:`step`.

        Raises
        ------
        RuntimeError
            Without ``timed=True``.
        """
        if self._clock is None:
            raise RuntimeError("times() needs a Guidance made with timed=True")
        seconds = self._clock.seconds()
        if not seconds:
            return {}
        step = seconds.pop("step")
        times = {f"guidance/seconds/{part}": value for part, value in seconds.items()}
        share = sum(seconds.values()) / step
        return times | {"guidance/seconds/step": step, "guidance/time_share": share}

    def write_to(self, writer: Any, step: int | None = None) -> None:
        """Write :meth:`log_dict`, and :meth:`times` if timed, to TensorBoard.

        Reads the values, so it waits for the device.

        Parameters
        ----------
        writer : torch.utils.tensorboard.SummaryWriter
            Or anything else with its ``add_scalar(tag, value, step)``.
        step : int, optional
            The step to write them under; the one of the last loss by default.
        """
        values = self.log_dict()
        if self._clock is not None:
            values |= self.times()
        last = int(values.pop("guidance/step", self.steps))
        for name, value in values.items():
            writer.add_scalar(name, float(value), last if step is None else step)

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self._clock is None else self._clock.span(part)

    def _start_step(self) -> None:
        if self._clock is not None:
            self._clock.start_step()

    def _end_step(self) -> None:
        if self._clock is not None:
            self._clock.end_step()
        if self._record is not None and self._record.step is None:
            self._record.step = self.steps
