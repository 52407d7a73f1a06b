"""Functions that run on every rank of a process group, in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch


def on_each_rank(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returns on each of two ranks of gloo.

    The function must be importable, and what it returns something that torch.load reads.
    """
    # Its server has torch loaded and never computed, so that its forks start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    processes = [
        context.Process(target=_work, args=(function, rank, folder, arguments), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _work(function: Callable[..., Any], rank: int, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # where the ranks disagree on what they exchange
    )
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
