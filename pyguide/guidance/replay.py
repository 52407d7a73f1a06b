"""Running a model twice as if it ran once: its random numbers and its buffers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["RandomState", "unchanged_buffers"]


class RandomState(NamedTuple):
    """The states of the global random generators that a model draws from."""

    python: Any
    numpy: Any
    cpu: Tensor
    devices: list[int]
    states: list[Tensor]
    device_type: str

    @classmethod
    def of(cls, model: nn.Module) -> RandomState:
        """Of Python, NumPy if it is in use, the CPU, and the devices of the model's parameters."""
        parameters = [p for p in model.parameters() if p.device.type not in ("cpu", "meta")]
        kind = parameters[0].device.type if parameters else "cuda"
        numpy = sys.modules.get("numpy.random")
        return cls(
            random.getstate(),
            None if numpy is None else numpy.get_state(legacy=False),
            torch.get_rng_state(),
            *get_device_states(*parameters),
            kind,
        )

    def restore(self) -> None:
        """Draw from here again."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy.random"].set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        set_device_states(self.devices, self.states, device_type=self.device_type)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Give the buffers of a model back the values that they had.

    If its next forward pass is the one in which DistributedDataParallel broadcasts buffers, then
    it is so again.
    """
    broadcasts = getattr(model, "require_forward_param_sync", None)
    before = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, value in before:
                module._buffers[name] = buffer
                # batch_norm changes its statistics without a new version.
                if buffer._version != version or isinstance(module, _NormBase):
                    buffer.copy_(value)
        if broadcasts is not None:
            setattr(model, "require_forward_param_sync", broadcasts)  # noqa: B010
