"""When the gradients of a distributed target are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyguide.capture.sharding import sharded_modules

__all__ = ["local_gradients"]


@contextmanager
def local_gradients(target: nn.Module) -> Iterator[None]:
    """Gradients that stay in each process: those of DistributedDataParallel and `fully_shard`."""
    no_sync: Any = getattr(target, "no_sync", None)
    if no_sync is not None:
        with no_sync():
            yield
        return
    sharded = sharded_modules(target)
    for module in sharded:
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_requires_gradient_sync(True, recurse=False)
