"""Guidance where torch.distributed runs: whose samples are compared, and how errors reach all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from pyguide.distances import Distance
from pyguide.distributed import GlobalBatch
from pyguide.guidance.cache_key import digest
from pyguide.guidance.guide import FrozenGuide

__all__ = [
    "ProcessGroup",
    "digest_of_guide",
    "global_batch_of",
    "is_distributed",
    "telling_others",
    "warn_of_own_batches",
]

# Values of a tensor that tell it from others.
_SOME = 1024

# Torch may be built without torch.distributed.
if TYPE_CHECKING:
    ProcessGroup: TypeAlias = torch.distributed.ProcessGroup
else:
    ProcessGroup = object


def is_distributed() -> bool:
    """Whether torch.distributed is in use."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def global_batch_of(
    distance: Distance, process_group: ProcessGroup | str | None
) -> GlobalBatch | None:
    """The distance of several processes' batches together; None where each compares its own.

    `process_group` is that of :class:`pyguide.Guidance`.
    """
    if isinstance(process_group, str):
        if process_group != "local":
            raise ValueError(
                f'process_group must be a ProcessGroup, "local" or None, got {process_group!r}'
            )
        return None
    if process_group is None and not is_distributed():
        return None
    if torch.distributed.get_world_size(process_group) == 1:
        return None
    return GlobalBatch(distance, process_group)


def digest_of_guide(guide: FrozenGuide) -> str:
    """What tells a guide from others in the same run: of the first values of its tensors.

    Of its parameters, and in mode "eval" of its buffers; empty where a process has a part only.
    """
    model = guide.model
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return ""
    named = [*model.named_parameters(), *(model.named_buffers() if guide.mode == "eval" else ())]
    return digest(
        (f"{name} {tuple(tensor.shape)}", _beginning(tensor.detach()))
        for name, tensor in named
        if type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
    )[:16]


def _beginning(x: Tensor) -> Tensor:
    """Of its values at most _SOME, without a copy of all."""
    while x.numel() > _SOME:
        x = x[: max(1, _SOME * len(x) // x.numel())] if len(x) > 1 else x[0]
    return x


@contextmanager
def telling_others(batch: GlobalBatch | None) -> Iterator[None]:
    """Tell the processes that wait for this one if it fails inside."""
    try:
        yield
    except Exception as error:
        if batch is not None:
            batch.fail(error)
        raise


def warn_of_own_batches() -> None:
    """Warn that torch.distributed was initialised too late for Guidance to see it."""
    warnings.warn(
        "Guidance was made before torch.distributed was initialised, so each process compares its "
        "own batch, which trains something else than the whole batch: call "
        'init_process_group() first, or make Guidance with process_group="local"',
        stacklevel=4,
    )
