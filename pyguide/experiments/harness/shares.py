"""The processes that train one model: what each has of a batch, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import Tensor, nn

from pyguide.data.splits import Share

__all__ = ["Processes", "control_group"]

T = TypeVar("T")

# How long the others wait for the first one, which reads data and evaluates.
_PATIENCE = timedelta(hours=12)


class Processes:
    """The processes that train a model together; one of them does it alone."""

    def __init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.size = dist.get_world_size() if distributed else 1

    @property
    def share(self) -> Share:
        """What this process has of a batch."""
        return Share(self.rank, self.size)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over the processes."""
        if self.size == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        return nn.parallel.DistributedDataParallel(model)

    def from_first(self, value: Callable[[], T]) -> T:
        """What it returns in the first process; the others do not call it."""
        if self.size == 1:
            return value()
        box = [value() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=control_group())
        result: Any = box[0]
        return result

    def gathered(self, value: T) -> list[T]:
        """Every process's."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=control_group())
        return values

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes."""
        each = self.gathered(dict(values))
        return {key: sum(own[key] for own in each) / self.size for key in values}

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        for tensor in tensors if self.size > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.size


def control_group() -> dist.ProcessGroup:
    """Of all processes, for messages on the host whatever the device."""
    world = dist.group.WORLD
    assert world is not None
    if world not in _control_groups:
        _control_groups[world] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _control_groups[world]


_control_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()
