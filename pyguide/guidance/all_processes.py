"""Guidance where torch.distributed runs: whose samples are compared, and how errors reach all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch

from pyguide.distances import Distance
from pyguide.distributed import GlobalBatch

__all__ = [
    "ProcessGroup",
    "global_batch_of",
    "is_distributed",
    "telling_others",
    "warn_of_own_batches",
]

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
