"""What a model is trained on: its task alone, the task and guidance, or distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyguide.guidance import Guidance
from pyguide.guidance.timing import StepClock

if TYPE_CHECKING:
    from pyguide.experiments.harness.experiment import Setting

__all__ = ["Distilled", "Guided", "Losses", "Objective"]


class Losses(NamedTuple):
    """The losses of a batch.

    Attributes
    ----------
    output : Any
        What the model returned.
    total : Tensor
        To be minimised.
    parts : dict of str to Tensor
        By name, with their graphs: "task" and what there is besides.
    """

    output: Any
    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """The task's loss alone.

    Parameters
    ----------
    setting : Setting
        Has the losses.
    """

    def __init__(self, setting: Setting[Any]) -> None:
        self.setting = setting

    def __call__(self, model: nn.Module, x: Any, y: Any, ids: Tensor | None = None) -> Losses:
        """Run the model on a batch; `ids` are those of :class:`~pyguide.data.splits.Batch`."""
        output = model(x)
        task = self.setting.task_loss(output, y)
        return Losses(output, task, {"task": task})

    def step(self) -> None:
        """An optimizer step was made."""

    def times(self) -> dict[str, float]:
        """Seconds of the parts of the last step and of the whole, as far as they are known."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the rest of a training depends on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""


class Guided(Objective):
    """The task's loss plus the guidance term."""

    def __init__(self, setting: Setting[Any], guidance: Guidance) -> None:
        super().__init__(setting)
        self.guidance = guidance

    def __call__(self, model: nn.Module, x: Any, y: Any, ids: Tensor | None = None) -> Losses:
        with self.guidance.capture():
            output = model(x)
        task = self.setting.task_loss(output, y)
        guidance = self.setting.guidance_loss(self.guidance, x, y, ids)
        return Losses(output, task + guidance, {"task": task, "guidance": guidance})

    def step(self) -> None:
        self.guidance.step()

    def times(self) -> dict[str, float]:
        if self.guidance.released:
            return {}
        seconds = self.guidance.times()
        prefix = "guidance/seconds/"
        return {k.removeprefix(prefix): v for k, v in seconds.items() if k.startswith(prefix)}

    def state_dict(self) -> dict[str, Any]:
        return self.guidance.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guidance.load_state_dict(state)


class Distilled(Objective):
    """``(1 - alpha) task + alpha T^2 KL(teacher || model)``, of softened predictions.

    Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531): both networks'
    logits are divided by the temperature T before the softmax, and T^2 keeps the gradient's
    size. The teacher runs in evaluation mode and without gradient.

    Parameters
    ----------
    setting : Setting
    teacher : nn.Module
    alpha : float
        Share of the teacher, from 0 to 1.
    temperature : float
    """

    def __init__(
        self, setting: Setting[Any], teacher: nn.Module, *, alpha: float, temperature: float
    ) -> None:
        super().__init__(setting)
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha, self.temperature = alpha, temperature
        self._clock = StepClock(teacher)

    def __call__(self, model: nn.Module, x: Any, y: Any, ids: Tensor | None = None) -> Losses:
        self._clock.start_step()
        output = model(x)
        task = self.setting.task_loss(output, y)
        with torch.no_grad(), self._clock.span("guide"):
            taught = F.log_softmax(self.teacher(x) / self.temperature, dim=-1)
        own = F.log_softmax(output / self.temperature, dim=-1)
        divergence = F.kl_div(own, taught, reduction="batchmean", log_target=True)
        distillation = self.alpha * self.temperature**2 * divergence
        total = (1 - self.alpha) * task + distillation
        return Losses(output, total, {"task": task, "distillation": distillation})

    def step(self) -> None:
        self._clock.end_step()

    def times(self) -> dict[str, float]:
        return self._clock.seconds()
