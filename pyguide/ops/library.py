"""The ``torch.library`` namespace in which the native operators are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("pyguide", "DEF")


def register(
    schema: str, *, cpu: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Define ``pyguide::<schema>`` with its CPU implementation and its shape function.

    define/impl costs 5 µs a call where ``torch.library.custom_op`` costs 55-110 µs.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"pyguide::{name}", fake, lib=_library)
    operator: torch._ops.OpOverload = getattr(torch.ops.pyguide, name).default
    return operator
