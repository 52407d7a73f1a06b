"""The course of a guided training: its optimizer steps, and what they decide."""

from __future__ import annotations

from pyguide.guidance.schedules import Schedule, as_schedule, weight_at, whole_number

__all__ = ["Phases"]


class Phases:
    """Counts optimizer steps; says at each the weight, and whether to align only or it is over.

    Parameters
    ----------
    weight : float or callable
        The weight, or a function of the step.
    release_at : int or None
        The step at which guidance is over.
    align_only : int
        The step at which the task loss joins.

    Raises
    ------
    ValueError
        For what is not a number of steps, a weight that is not finite, or an align-only phase
        that ends after release.
    """

    def __init__(self, weight: float | Schedule, release_at: int | None, align_only: int) -> None:
        self.release_at = None if release_at is None else whole_number("release_at", release_at)
        self.align_only = whole_number("align_only", align_only)
        if self.release_at is not None and self.align_only > self.release_at:
            raise ValueError(
                f"align_only must not be after release_at={release_at}, got {align_only}: "
                "guidance alone would train the target, and there is none after release"
            )
        self._schedule = as_schedule(weight)
        self.steps = 0
        self.released = self.release_at == 0
        self._weight = weight_at(self._schedule, 0)
        self._aligning = self.align_only > 0

    @property
    def weight(self) -> float:
        return 0.0 if self.released else self._weight

    @property
    def aligning(self) -> bool:
        return self._aligning and not self.released

    def is_over(self, steps: int) -> bool:
        """Whether `release_at` is reached after so many steps."""
        return self.release_at is not None and steps >= self.release_at

    def check(self, steps: int) -> None:
        """ValueError if the schedule has no finite weight after so many steps."""
        weight_at(self._schedule, steps)

    def go_to(self, steps: int) -> None:
        """Be after so many steps. Reaching `release_at` does not set :attr:`released`."""
        # Ready before the step, whose compiled code then reads no number that changes in
        # each step, and need not be compiled again for it.
        if not (self.released or self.is_over(steps)):
            self._weight = weight_at(self._schedule, steps)
        self._aligning = steps < self.align_only
        self.steps = steps
