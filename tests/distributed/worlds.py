"""Processes of torch.distributed that tests run functions in."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class World:
    """W processes with a gloo group.

    They are spawned, so what they run must be importable: functions of test modules.
    """

    def __init__(self, size: int, folder: Path):
        context = mp.get_context("spawn")
        self.size = size
        self._pipes, self.processes = [], []
        for rank in range(size):
            own, other = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, str(folder / "store"), other), daemon=True
            )
            process.start()
            self._pipes.append(own)
            self.processes.append(process)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Call ``function(rank, *args)`` in every process."""
        for pipe in self._pipes:
            pipe.send((function, args))

    def result(self, rank: int, timeout: float = 60.0) -> Any:
        """What the call returned there, or its exception."""
        if not self._pipes[rank].poll(timeout):
            raise TimeoutError(f"process {rank} did not answer in {timeout} s")
        return self._pipes[rank].recv()

    def results(self, timeout: float = 60.0) -> list[Any]:
        """Those of all processes."""
        return [self.result(rank, timeout) for rank in range(self.size)]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The results of all processes; raises if one of them did."""
        self.start(function, *args)
        results = self.results()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(rank, *args))
        except Exception as error:
            error.add_note(traceback.format_exc())
            pipe.send(error)
