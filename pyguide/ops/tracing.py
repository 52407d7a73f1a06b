"""What Dynamo is told about functions that it calls and does not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["constant_while_traced"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant_while_traced(function: _Function) -> _Function:
    """Make Dynamo call ``function`` once while it traces, and keep the result as a constant.

    This is ``torch.compiler.assume_constant_result``, which imports Dynamo to set the same
    attribute: 2 seconds that every ``import pyguide`` would take.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
