"""Peak memory of a call, in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pyguide.bench.candidates import candidate
from pyguide.bench.workloads import Workload

__all__ = ["in_own_process", "memory_of", "peak_memory"]

# More than the samples for which pyguide has kernels of their own.
_TINY_N = 32

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(
    workload: Workload, n: int, seed: int, name: str, threads: int
) -> dict[str, int] | str:
    """What one call of a candidate adds to its process: see :func:`memory_of`.

    The call is the first at its sizes, so that workspaces which libraries then keep count;
    of a candidate that compiles it is the second.
    """
    return in_own_process(_measure, workload, n, seed, name, threads=threads)


def in_own_process(
    measure: Callable[..., dict[str, int] | str], *arguments: object, threads: int
) -> dict[str, int] | str:
    """What ``measure`` returns in a fresh process, or why there is nothing.

    The function and its arguments must be picklable.
    """
    # The server has torch loaded and never runs a parallel region, so that its forks start
    # at once and may start threads of their own. In a fork pyguide's are std::threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyguide.bench.memory"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(measure, arguments, threads, sender), daemon=True)
    process.start()
    sender.close()
    try:
        measured: dict[str, int] | str = receiver.recv()
    except EOFError:
        process.join()
        return f"not available: the process ended early (exit code {process.exitcode})"
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join()
    return measured


def _work(
    measure: Callable[..., dict[str, int] | str],
    arguments: tuple[object, ...],
    threads: int,
    sender: Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, without its traceback
    torch.set_num_threads(threads)
    try:
        sender.send(measure(*arguments))
    except Exception as error:
        sender.send(f"not available: {type(error).__name__}: {error}".splitlines()[0])


def _measure(workload: Workload, n: int, seed: int, name: str) -> dict[str, int] | str:
    run = candidate(name).make(workload)
    assert run is not None
    problem = workload.make(n, seed)
    # Libraries load, and threads start, at the first call, so that one comes before: at tiny sizes
    # or, where it compiles for the sizes it gets, at the real ones.
    torch.zeros(1 << 20).add_(1)
    if candidate(name).compiles:
        run(problem)
    else:
        run(workload.tiny().make(_TINY_N, seed))
    return memory_of(lambda: run(problem))


def memory_of(call: Callable[[], object]) -> dict[str, int] | str:
    """Memory that a call adds to this process, its result included.

    Returns
    -------
    dict or str
        ``"peak"`` during the call and ``"retained"`` after it with its result held, in
        bytes; or why they are not available.
    """
    if not _CLEAR_REFS.exists():
        return "not available: no /proc/self/clear_refs"
    _return_free_memory()
    _CLEAR_REFS.write_text("5")  # resets VmHWM
    before, _ = _resident()
    result = call()
    after, peak = _resident()
    del result
    return {"peak": peak - before, "retained": after - before}


def _return_free_memory() -> None:
    """Give the allocator's free pages back, so that the call's own count."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _resident() -> tuple[int, int]:
    """Resident memory in bytes: now, and at most since VmHWM was reset."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines if words and words[0].startswith("Vm")}
    return kib["VmRSS:"] * 1024, kib["VmHWM:"] * 1024
