"""What Dynamo is told about functions that it calls and does not trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["constant_while_traced", "not_traced"]

_Function = TypeVar("_Function", bound=Callable[..., object])
_Result = TypeVar("_Result")


def constant_while_traced(function: _Function) -> _Function:
    """Make Dynamo call ``function`` once while it traces, and keep the result as a constant.

    This is ``torch.compiler.assume_constant_result``, which imports Dynamo to set the same
    attribute: 2 seconds that every ``import pyguide`` would take.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_traced(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Make compiled code call ``function`` as it is, at the price of a graph break.

    This is ``torch.compiler.disable``, which imports Dynamo as soon as it is applied.
    """

    @functools.wraps(function)
    def called(*args: object) -> _Result:
        if torch.compiler.is_compiling():
            result: _Result = torch.compiler.disable(function)(*args)
            return result
        return function(*args)

    return called
