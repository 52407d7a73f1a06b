"""Run jobs as parallel processes, with progress, and survive the crash of one.

Every job has a process of its own, started by ``spawn``: a job that dies, even by a
signal, is known by name and takes no other job with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pyguide.errors import UserError
from pyguide.experiments.harness.allocation import keep_freed_memory
from pyguide.experiments.harness.progress import Job, Progress, Task

__all__ = ["run_tasks", "worker_count"]


def worker_count(workers: int | None, threads: int, device: str = "cpu") -> int:
    """``workers``, by default as many as have a core for each of their threads; on a GPU one.

    Raises
    ------
    UserError
        If ``workers`` is below 1.
    """
    if workers is None:
        return max(1, _available_cores() // threads) if device == "cpu" else 1
    if workers < 1:
        raise UserError(f"--workers: expected at least 1, got {workers}")
    return workers


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    tasks: Sequence[Task],
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
        # No daemon: those may not have processes of their own, which read images.
        process = context.Process(target=_work, args=(task.job, threads, sender))
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
                if kind == "restored":
                    for record in value:
                        on_epoch(task, record)
                    progress.restored(task, len(value))
                    continue
                if kind == "note":
                    progress.message(f"{task.job.name}: {value}")
                    continue
                del running[receiver]
                receiver.close()
                process.join()
                if kind == "result":
                    done.add(task.key)
                    on_result(task, value)
                    progress.skip(task)  # A run that diverged ends early.
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


class _PipeReport:
    """A job's report to the parent process."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def epoch(self, record: dict[str, Any]) -> None:
        self._sender.send(("epoch", record))

    def restored(self, records: list[dict[str, Any]]) -> None:
        self._sender.send(("restored", records))

    def note(self, text: str) -> None:
        self._sender.send(("note", text))


def _work(job: Job, threads: int, sender: Connection) -> None:
    """Body of a worker process."""
    import torch

    _end_with_parent()
    if multiprocessing.parent_process() is not None:
        keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        result = job.run(_PipeReport(sender))
        sender.send(("result", result))
    except BrokenPipeError:
        return  # The parent is gone: nobody wants the result.
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        sender.send(("error", f"{type(error).__name__}: {error} [{at}]"))


def _end_with_parent() -> None:
    """End this process when its parent dies, even by a signal: a folder has one writer."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let a process started here ignore Ctrl-C: the parent ends it, without its traceback."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
