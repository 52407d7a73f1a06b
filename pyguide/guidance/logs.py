"""What a guided step's loss was made of, for loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossRecord", "grad_norm"]


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
