"""Modules that torch.distributed.fsdp.fully_shard has changed in place."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

__all__ = ["layer_class", "sharded_modules"]


def layer_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module was made of: `fully_shard` gives it a subclass."""
    own = type(module)
    if not _is_sharded(module):
        return own
    # Bases: that subclass, FSDPModule, the class of the module, and so on.
    return own.__mro__[getattr(own, "_orig_cls_mro_index", 2)]


def sharded_modules(model: nn.Module) -> list[Any]:
    """Those that `fully_shard` was called with."""
    return [module for module in model.modules() if _is_sharded(module)]


def _is_sharded(module: nn.Module) -> bool:
    # It is slow to import, and nothing can be sharded where it was not.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = getattr(fsdp, "FSDPModule", None)
    return sharded is not None and isinstance(module, sharded)
