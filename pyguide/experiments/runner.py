"""Run jobs as parallel processes, with progress, and survive the crash of one.

Every job has a process of its own, started by ``spawn``: a job that dies, even by a
signal, is known by name and takes no other job with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TextIO

from pyguide.experiments.errors import UserError
from pyguide.experiments.mnist1d import Data

__all__ = ["Job", "Progress", "Task", "run_tasks", "worker_count"]


class Job(Protocol):
    """Work for one process; picklable."""

    @property
    def name(self) -> str:
        """What messages call the job."""

    @property
    def epochs(self) -> int:
        """Number of reports to expect."""

    def run(self, data: Data, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Do the work, reporting a record an epoch, and return the result."""


@dataclass(frozen=True)
class Task:
    """A job, and the task (by key) whose success it needs first."""

    key: str
    job: Job
    needs: str | None = None
    cost: float = 1.0  # of one epoch, relative to the other tasks; for the time left


def worker_count(workers: int | None, threads: int) -> int:
    """``workers``, by default as many as have a core for each of their threads.

    Raises
    ------
    UserError
        If ``workers`` is below 1.
    """
    if workers is None:
        return max(1, _available_cores() // threads)
    if workers < 1:
        raise UserError(f"--workers: expected at least 1, got {workers}")
    return workers


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    tasks: Sequence[Task],
    data: Path,
    *,
    workers: int,
    threads: int,
    on_epoch: Callable[[Task, dict[str, Any]], None],
    on_result: Callable[[Task, dict[str, Any]], None],
    progress: Progress,
) -> dict[str, str]:
    """Run the tasks, at most ``workers`` at a time, in order as far as needs allow.

    Parameters
    ----------
    tasks : sequence of Task
        A need that is not among them counts as met.
    data : Path
        File of :class:`~pyguide.experiments.mnist1d.Data` that every job gets. Not the
        arrays: a process that dies before it has read large arguments blocks its parent.
    workers, threads : int
        Processes at a time, and torch threads in each.
    on_epoch, on_result : callable
        Called in this process with the task and its record, as they come.
    progress : Progress
        Told of every epoch and message.

    Returns
    -------
    dict
        The reason of failure by the key of each task that failed or whose need failed.
        The other tasks are run to their end. When an exception leaves this function
        (Ctrl-C), every process has been ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting, keys = list(tasks), {task.key for task in tasks}
    done: set[str] = set()
    failed: dict[str, str] = {}
    running: dict[Connection, tuple[Task, Any]] = {}

    def start(task: Task) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(task.job, data, threads, sender), daemon=True)
        with _interrupts_ignored():
            process.start()
        sender.close()
        running[receiver] = (task, process)

    def fail(task: Task, reason: str) -> None:
        failed[task.key] = reason
        progress.skip(task)
        progress.message(f"FAILED: {task.job.name}: {reason}")

    def start_ready() -> None:
        for task in list(waiting):
            if task.needs in failed:
                waiting.remove(task)
                fail(task, f"needs {task.needs}, which failed")
            elif len(running) < workers and (task.needs not in keys or task.needs in done):
                waiting.remove(task)
                start(task)

    try:
        start_ready()
        while running:
            for receiver in wait(list(running), timeout=1.0):
                assert isinstance(receiver, Connection)
                task, process = running[receiver]
                kind, value = _receive(receiver, process)
                if kind == "epoch":
                    on_epoch(task, value)
                    progress.advance(task)
                    continue
                del running[receiver]
                receiver.close()
                process.join()
                if kind == "result":
                    done.add(task.key)
                    on_result(task, value)
                else:
                    fail(task, value)
                start_ready()
            progress.refresh()
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
    return failed


def _receive(receiver: Connection, process: Any) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = receiver.recv()
        return message
    except (EOFError, OSError):
        # OSError: it died in the middle of a message.
        process.join()
        return "error", f"its process ended early (exit code {process.exitcode})"


def _work(job: Job, data: Path, threads: int, sender: Connection) -> None:
    """Body of a worker process."""
    import torch

    torch.set_num_threads(threads)
    try:
        result = job.run(Data.load(data), lambda record: sender.send(("epoch", record)))
        sender.send(("result", result))
    except BrokenPipeError:
        return  # The parent is gone: nobody wants the result.
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        sender.send(("error", f"{type(error).__name__}: {error} [{at}]"))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let a process started here ignore Ctrl-C: the parent ends it, without its traceback."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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

    def advance(self, task: Task) -> None:
        """One epoch of the task is done."""
        self._left[task.key] -= 1
        self._bar.update(task.cost)

    def skip(self, task: Task) -> None:
        """The rest of the task will not run."""
        self._bar.total -= self._left[task.key] * task.cost

    def refresh(self) -> None:
        """Redraw, so that the clock runs between epochs."""
        self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
