"""The processes that take the steps of the candidates when they are told to."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from pyguide.bench.memory import memory_of
from training_steps.settings import Candidate, Setting
from training_steps.training import Training

_FEW = 8  # samples of the step that loads what libraries load


def work(
    setting: Setting,
    candidate: Candidate,
    rank: int,
    threads: int,
    chunk: int,
    store: str,
    pipe: Connection,
) -> None:
    """What a process does: send its memory, then take a step whenever it is told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, without its traceback
    warnings.filterwarnings("ignore", "the target has BatchNorm|biased CKA of")
    torch.set_num_threads(threads)
    if candidate.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=candidate.processes
        )
    training = Training(setting, candidate, rank, chunk)
    training.step(_FEW)
    pipe.send(memory_of(training.step))
    while pipe.recv():
        if candidate.processes > 1:
            dist.barrier()
        start = time.perf_counter()
        training.step()
        pipe.send(time.perf_counter() - start)


class Workers:
    """The processes of one candidate."""

    def __init__(
        self, setting: Setting, candidate: Candidate, threads: int, chunk: int, folder: Path
    ) -> None:
        # Its server has torch loaded and never computes, so that its forks start at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pyguide.bench.memory"])
        self.processes, self._pipes = [], []
        store = str(folder / f"store-{candidate.name.replace(' ', '')}")
        threads = candidate.threads or threads
        for rank in range(candidate.processes):
            own, other = context.Pipe()
            arguments = setting, candidate, rank, threads, chunk, store, other
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            other.close()
            self.processes.append(process)
            self._pipes.append(own)

    def memory(self) -> dict[str, int] | str:
        """What the first step added to the process that it added most to, or why it is unknown."""
        found = [pipe.recv() for pipe in self._pipes]
        unknown = [each for each in found if isinstance(each, str)]
        return unknown[0] if unknown else max(found, key=lambda each: each["peak"])

    def step(self) -> float:
        """Seconds until the last process is ready."""
        for pipe in self._pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def workers(
    setting: Setting, threads: int, chunk: int
) -> Iterator[Iterable[tuple[Candidate, Workers]]]:
    """The candidates of a setting, started one after the other as they are asked for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def started() -> Iterator[tuple[Candidate, Workers]]:
            for candidate in setting.candidates:
                each = Workers(setting, candidate, threads, chunk, folder)
                stack.callback(each.close)
                yield candidate, each

        yield started()
