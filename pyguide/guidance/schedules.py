"""Weights that change with the optimizer step.

A schedule is any callable from the number of optimizer steps taken, 0 in the first, to the
weight. It must depend on nothing else: a resumed run asks it again for the step it is at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

__all__ = ["Schedule", "constant", "cosine", "linear"]

Schedule = Callable[[int], float]


def constant(weight: float) -> Schedule:
    """`weight` at every step.

    Parameters
    ----------
    weight : float
        The weight, finite.

    Returns
    -------
    callable
        Step to weight.

    Examples
    --------
    >>> from pyguide.guidance import schedules
    >>> schedules.constant(0.5)(1000)
    0.5
    """
    weight = _finite("weight", weight)
    return lambda step: weight


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 in a straight line to `end` at `steps`, and `end` after.

    Parameters
    ----------
    start, end : float
        Weights, finite.
    steps : int
        Optimizer steps from `start` to `end`, at least 1.

    Returns
    -------
    callable
        Step to weight.

    Raises
    ------
    ValueError
        If a weight is not finite, or `steps` is not a whole number of at least 1.

    Examples
    --------
    >>> from pyguide.guidance import schedules
    >>> weight = schedules.linear(1.0, 0.0, steps=100)
    >>> weight(0), weight(25), weight(100), weight(101)
    (1.0, 0.75, 0.0, 0.0)
    """
    return _ramp(start, end, steps, lambda fraction: fraction)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 along half a cosine to `end` at `steps`, and `end` after.

    Parameters
    ----------
    start, end : float
        Weights, finite.
    steps : int
        Optimizer steps from `start` to `end`, at least 1.

    Returns
    -------
    callable
        Step to weight.

    Raises
    ------
    ValueError
        If a weight is not finite, or `steps` is not a whole number of at least 1.

    Examples
    --------
    >>> from pyguide.guidance import schedules
    >>> weight = schedules.cosine(1.0, 0.0, steps=100)
    >>> weight(0), round(weight(25), 4), weight(50), weight(100), weight(101)
    (1.0, 0.8536, 0.5, 0.0, 0.0)
    """
    return _ramp(start, end, steps, lambda fraction: (1 - math.cos(math.pi * fraction)) / 2)


def _ramp(start: float, end: float, steps: int, shape: Callable[[float], float]) -> Schedule:
    start, end = _finite("start", start), _finite("end", end)
    steps = whole_number("steps", steps, minimum=1)

    def weight(step: int) -> float:
        if step >= steps:
            return end
        fraction = shape(step / steps)
        return (1 - fraction) * start + fraction * end

    return weight


def as_schedule(weight: float | Schedule) -> Schedule:
    """The schedule that `weight` is or stands for."""
    return weight if callable(weight) else constant(weight)


def weight_at(schedule: Schedule, step: int) -> float:
    """The weight at `step`; ValueError if it is not finite."""
    return _finite(f"the weight at step {step}", schedule(step))


def whole_number(name: str, value: object, minimum: int = 0) -> int:
    """`value` as an int; ValueError if it is none or below `minimum`."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= minimum:
        return int(value)
    raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")


def _finite(name: str, value: object) -> float:
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} must be a finite number, got {value!r}")
