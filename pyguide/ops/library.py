"""The ``torch.library`` namespace in which the native operators are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("pyguide", "DEF")


def register(
    schema: str, *, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Define ``pyguide::<schema>`` with its implementation and its shape function.

    One implementation serves both devices: what differs is in pyguide/ops/dispatch.py.

    define/impl costs 5 µs a call where ``torch.library.custom_op`` costs 55-110 µs.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, implementation, device)
    torch.library.register_fake(f"pyguide::{name}", fake, lib=_library)
    operator: torch._ops.OpOverload = getattr(torch.ops.pyguide, name).default
    return operator
