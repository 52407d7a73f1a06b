"""What a run has to do, and a bar that shows how much of it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from pyguide.experiments.harness.trainer import Report

__all__ = ["Job", "Progress", "Task"]


class Job(Protocol):
    """Work for one process; picklable."""

    @property
    def name(self) -> str:
        """What messages call the job."""

    @property
    def epochs(self) -> int:
        """Number of reports to expect."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, as JSON types."""

    def run(self, report: Report) -> dict[str, Any]:
        """Do the work, reporting a record an epoch, and return the result."""


@dataclass(frozen=True)
class Task:
    """A job, and the task (by key) whose success it needs first."""

    key: str
    job: Job
    needs: str | None = None
    cost: float = 1.0  # of one epoch, relative to the other tasks; for the time left


class Progress:
    """A bar with the time left on a terminal; elsewhere nothing but the messages.

    Parameters
    ----------
    tasks : sequence of Task
        All that will run; their epochs, weighted by cost, are the bar's length.
    stream : text file
        Where the bar and the messages go; standard error by default.
    """

    def __init__(self, tasks: Sequence[Task], stream: TextIO | None = None) -> None:
        from tqdm import tqdm

        self._stream = sys.stderr if stream is None else stream
        self._left = {task.key: task.job.epochs for task in tasks}
        self._bar = tqdm(
            total=sum(task.job.epochs * task.cost for task in tasks),
            file=self._stream,
            disable=not self._stream.isatty(),
            leave=False,
            smoothing=0,  # Parallel jobs report in bursts: the mean rate predicts best.
            bar_format="{percentage:3.0f} % |{bar:30}| {elapsed} elapsed, {remaining} left",
        )

    def add(self, tasks: Sequence[Task]) -> None:
        """More will run than was known."""
        self._left |= {task.key: task.job.epochs for task in tasks}
        self._bar.total += sum(task.job.epochs * task.cost for task in tasks)

    def advance(self, task: Task) -> None:
        """One epoch of the task is done."""
        self._left[task.key] -= 1
        self._bar.update(task.cost)

    def restored(self, task: Task, epochs: int) -> None:
        """Epochs of the task were done in an earlier run; they say nothing about the time left."""
        self._left[task.key] -= epochs
        self._bar.total -= epochs * task.cost

    def skip(self, task: Task) -> None:
        """The rest of the task will not run."""
        self._bar.total -= self._left[task.key] * task.cost
        self._left[task.key] = 0

    def refresh(self) -> None:
        """Redraw, so that the clock runs between epochs."""
        self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
