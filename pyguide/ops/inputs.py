"""Checks of what users pass, before any work is done."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

from pyguide.ops.contract import PRECISIONS
from pyguide.ops.views import DTYPE_CODES

__all__ = [
    "check_layers",
    "check_pairs",
    "check_precision",
    "check_tokens",
    "integer_pairs",
    "positive_number",
    "real_number",
]


def check_layers(
    groups: Iterable[tuple[str, Sequence[Tensor]]], *, min_samples: int, why: str = ""
) -> None:
    """Raise unless all layers of the named groups can be compared with each other.

    ``groups`` holds (argument name, layers); a name that ends in ``[]`` gets each layer's
    index, so that a message can say ``xs[3]``.
    """
    first_name: str | None = None
    n, device = 0, torch.device("cpu")
    for argument, layers in groups:
        if isinstance(layers, Tensor) or not isinstance(layers, Sequence):
            raise TypeError(
                f"{argument.removesuffix('[]')} must be a list or tuple of tensors, "
                f"got {type(layers).__name__}"
            )
        for index, x in enumerate(layers):
            if first_name is not None and _can_join(x, n, device):
                continue
            _check_layer(argument, index, x)
            if first_name is None:
                first_name, n, device = _name(argument, index), x.size(0), x.device
            if x.size(0) < min_samples:
                raise ValueError(
                    f"{_name(argument, index)} needs at least {min_samples} samples{why}, "
                    f"got shape {tuple(x.shape)}"
                )
            if x.size(0) != n:
                raise ValueError(
                    f"all layers need the same number of samples: {first_name} has "
                    f"{n}, {_name(argument, index)} has {x.size(0)} (shape {tuple(x.shape)})"
                )
            if x.device != device:
                raise ValueError(
                    f"all layers must be on one device: {first_name} is on {device}, "
                    f"{_name(argument, index)} is on {x.device}"
                )


def _can_join(x: Tensor, n: int, device: torch.device) -> bool:
    """Whether x passes every check beside a layer that has: in few calls, for long lists."""
    return (
        isinstance(x, Tensor)
        and x.layout is torch.strided
        and not x.is_nested
        and x.dtype in DTYPE_CODES
        and x.device == device
        and x.dim() > 0
        and x.shape[0] == n
        and x.numel() > 0
    )


def check_tokens(groups: Iterable[tuple[str, Sequence[Tensor]]]) -> None:
    """Raise unless all layers are (n, T, ...) with one T; after :func:`check_layers`."""
    first: int | None = None
    for argument, layers in groups:
        for index, x in enumerate(layers):
            if x.dim() < 2:
                raise ValueError(
                    f"per_token needs layers of shape (n, T, ...): {_name(argument, index)} has "
                    f"shape {tuple(x.shape)}"
                )
            if first is None:
                first, first_name = x.size(1), _name(argument, index)
            if x.size(1) != first:
                raise ValueError(
                    f"per_token needs the same number of tokens in all layers: {first_name} has "
                    f"{first}, {_name(argument, index)} has {x.size(1)} (shape {tuple(x.shape)})"
                )


def _name(argument: str, index: int) -> str:
    return argument.replace("[]", f"[{index}]")


def _check_layer(argument: str, index: int, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{_name(argument, index)} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(
            f"{_name(argument, index)} must be a dense tensor, got "
            f"{'a nested tensor' if x.is_nested else f'layout {x.layout}; use .to_dense()'}"
        )
    if x.dtype not in DTYPE_CODES:
        raise TypeError(
            f"{_name(argument, index)} must be float64, float32, bfloat16 or float16, got {x.dtype}"
        )
    if x.dim() == 0:
        raise ValueError(f"{_name(argument, index)} must have shape (n, ...), got a scalar")
    if x.numel() == 0 and 0 in x.shape[1:]:
        raise ValueError(f"{_name(argument, index)} has no features: shape {tuple(x.shape)}")


def check_pairs(
    pairs: Sequence[tuple[int, int]] | None, left: int, right: int
) -> list[tuple[int, int]]:
    """The pairs as a list of int tuples; None is zip(xs, ys)."""
    if pairs is None:
        if left != right:
            raise ValueError(
                f"without pairs=, xs and ys must have the same length, got {left} and {right}"
            )
        return [(i, i) for i in range(left)]
    checked = integer_pairs(pairs)
    for index, (i, j) in enumerate(checked):
        for k, count, argument in ((i, left, "xs"), (j, right, "ys")):
            if not 0 <= k < count:
                raise IndexError(
                    f"pairs[{index}] = ({i}, {j}): {k} is out of range for {argument}, "
                    f"which has {count} layers (negative indices are not accepted)"
                )
    return checked


def integer_pairs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs as tuples of two ints, of whatever integer type they are."""
    checked = []
    for index, pair in enumerate(pairs):
        try:
            i, j = (operator.index(k) for k in pair)
        except (TypeError, ValueError):
            raise TypeError(
                f"pairs[{index}] must be two integers (index into xs, index into ys), got {pair!r}"
            ) from None
        checked.append((i, j))
    return checked


def check_precision(precision: str | None) -> None:
    """Raise unless precision is one of torch's float32 matmul precisions, or None."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS} or None, got {precision!r}")


def real_number(name: str, value: object) -> float:
    """The value as a float; TypeError if it is no number."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def positive_number(name: str, value: object) -> float:
    """The value as a float; ValueError unless it is positive and finite."""
    number = real_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return number
