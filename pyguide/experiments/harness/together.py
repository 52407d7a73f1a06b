"""Jobs that several processes do together, started by torchrun: each has a share of every batch.

The first process runs the command: it alone reads and writes the run folder. The others wait for
its jobs, and train with it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from pyguide.errors import UserError
from pyguide.experiments.harness.progress import Job, Progress, Task
from pyguide.experiments.harness.shares import control_group

__all__ = ["in_processes", "run_tasks_together", "started_by_torchrun"]


def started_by_torchrun() -> bool:
    """Whether this is one of several processes of torchrun."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def in_processes(
    command: Callable[[], int], *, device: Callable[[], str], workers: int | None
) -> int:
    """Run a command in the first process, with the others' help; return the exit code.

    Raises
    ------
    UserError
        Of the command; or if workers are asked for, of which each process would be one.
    """
    if not started_by_torchrun():
        return command()
    if workers is not None:
        raise UserError("--workers: torchrun's processes do one job after another together")
    with _process_group(device()):
        if dist.get_rank() > 0:
            return _help()
        try:
            code = command()
        except UserError:
            _send(None)  # No job is running.
            raise
        _send(None)
        return code


def run_tasks_together(
    tasks: Sequence[Task],
    *,
    threads: int,
    on_epoch: Callable[[Task, dict[str, Any]], None],
    on_result: Callable[[Task, dict[str, Any]], None],
    progress: Progress,
) -> dict[str, str]:
    """The first process's part of :func:`pyguide.experiments.harness.processes.run_tasks`.

    A job whose training diverges fails. Any other exception ends this process, and torchrun the
    others: they may be at another place of the job.
    """
    failed: dict[str, str] = {}
    for task in tasks:
        reason = f"needs {task.needs}, which failed" if task.needs in failed else None
        if reason is None:
            _send((task.job, threads))
            try:
                torch.set_num_threads(threads)
                on_result(task, task.job.run(_Told(task, on_epoch, progress)))
            except FloatingPointError as error:
                reason = f"{type(error).__name__}: {error}"
        progress.skip(task)
        if reason is not None:
            failed[task.key] = reason
            progress.message(f"FAILED: {task.job.name}: {reason}")
    return failed


def _help() -> int:
    """Do the jobs of the first process until it has no more."""
    while True:
        message = _receive()
        if message is None:
            return 0
        job, threads = message
        torch.set_num_threads(threads)
        # The first process reports that it diverged.
        try:
            job.run(_Silent())
        except FloatingPointError:
            continue


class _Told:
    """A job's report to the run."""

    def __init__(
        self, task: Task, on_epoch: Callable[[Task, dict[str, Any]], None], progress: Progress
    ) -> None:
        self._task, self._on_epoch, self._progress = task, on_epoch, progress

    def epoch(self, record: dict[str, Any]) -> None:
        self._on_epoch(self._task, record)
        self._progress.advance(self._task)

    def restored(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self._on_epoch(self._task, record)
        self._progress.restored(self._task, len(records))

    def note(self, text: str) -> None:
        self._progress.message(f"{self._task.job.name}: {text}")


class _Silent:
    """The report of a process that only helps."""

    def epoch(self, record: dict[str, Any]) -> None:
        pass

    def restored(self, records: list[dict[str, Any]]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def _send(message: tuple[Job, int] | None) -> None:
    dist.broadcast_object_list([message], src=0, group=control_group())


def _receive() -> tuple[Job, int] | None:
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0, group=control_group())
    message: tuple[Job, int] | None = box[0]
    return message


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    on_gpus = torch.device(device).type == "cuda"
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("nccl" if on_gpus else "gloo")
    yield
    # Not after an exception: others may wait for this process, which torchrun then ends.
    # A DistributedDataParallel that is garbage keeps gloo's threads alive, and one that still runs
    # when Python ends aborts the process (torch 2.13).
    gc.collect()
    dist.destroy_process_group()
