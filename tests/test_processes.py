"""Forked children, Python threads side by side, and memory over many calls."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import pyguide
from pyguide import _native
from pyguide.ops import cpu
from pyguide.ops.views import DTYPE_CODES

# Enough work for two threads in every operation.
_N, _WIDTH = 300, 2000


def _wait(child: int, seconds: float) -> int | None:
    """The child's exit status, or None if it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_forked_child_computes_the_same_bits_on_its_own_threads(threads) -> None:
    threads(2)
    x, y = torch.randn(_N, _WIDTH), torch.randn(_N, 700)

    # Calls no operator of torch that loops in parallel: those would hang in the child.
    def compute() -> list[bytes]:
        forward = cpu.alignment([x, y], [0], [1], debiased=False)
        a = torch.ones(1, dtype=torch.float64)
        gradient = cpu.alignment_backward(a, forward, [x, y], [0], [1], [0])
        return [t.numpy().tobytes() for t in (forward.grams, forward.values, *gradient)]

    expected = compute()
    child = os.fork()
    if child == 0:
        # Not a test's process any more: leave without its clean-up, whatever happens.
        try:
            os._exit(0 if compute() == expected else 1)
        finally:
            os._exit(2)
    assert _wait(child, 60) == 0, "None: it hung; 1: other bits; 2: an exception"
    assert compute() == expected


def test_children_of_children_and_later_forks(threads) -> None:
    threads(2)
    x = torch.randn(_N, _WIDTH)
    pyguide.gram([x])
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                cpu.gram([x], center=True)
                grandchild = os.fork()
                if grandchild == 0:
                    cpu.gram([x], center=True)
                    os._exit(0)
                os._exit(0 if _wait(grandchild, 60) == 0 else 1)
            finally:
                os._exit(2)
        assert _wait(child, 120) == 0
        pyguide.gram([x])


class _Similarities(Dataset):
    """A data set that computes CKA, as one that filters or augments by similarity does."""

    def __init__(self, xs: list[torch.Tensor], y: torch.Tensor) -> None:
        self.xs, self.y = xs, y

    def __len__(self) -> int:
        return len(self.xs)

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(2)  # a worker starts with one, where nothing could hang
        return pyguide.cka(self.xs[index], self.y)


def test_data_loader_workers(threads) -> None:
    threads(2)
    data = _Similarities([torch.randn(_N, _WIDTH) for _ in range(6)], torch.randn(_N, 700))
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = DataLoader(data, batch_size=3, num_workers=2, timeout=30)
    assert torch.equal(torch.cat(list(loader)), expected)


def test_two_python_threads_train_at_once(threads) -> None:
    def step(n: int, d: int) -> tuple[torch.Tensor, ...]:
        torch.set_num_threads(2)  # a thread's own
        generator = torch.Generator().manual_seed(n)
        xs = [torch.randn(n, w, generator=generator) for w in (d, 3 * d)]
        ys = [torch.randn(n, d, generator=generator, requires_grad=True) for _ in range(2)]
        values = pyguide.cka_matrix(xs, ys, debiased=True)
        return (values, *torch.autograd.grad(values.square().sum(), ys))

    shapes = [(100, 700), (300, 250)]
    expected = {shape: step(*shape) for shape in shapes}
    wrong: list[object] = []

    def work(shape: tuple[int, int]) -> None:
        try:
            for _ in range(20):
                same = map(torch.equal, step(*shape), expected[shape])
                if not all(same):
                    wrong.append(shape)
        except Exception as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(shape,)) for shape in shapes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def _memory(field: int) -> int:
    """Bytes of this process: of its address space (0) or in memory (1)."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * mmap.PAGESIZE


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(16, 64), (96, 4)], ids=["sample space", "feature space"])
def test_no_memory_growth_over_10_000_calls(n: int, d: int) -> None:
    x, y = torch.randn(n, d, requires_grad=True), torch.randn(n, d)

    def step() -> None:
        torch.autograd.grad(pyguide.cka(x, y, debiased=True), x)

    for _ in range(1000):
        step()
    gc.collect()
    before = _memory(1)
    for _ in range(10_000):
        step()
    gc.collect()
    # The smallest thing that a call could keep, a tensor's header, would be over 2 MiB.
    assert _memory(1) - before < 2**20


@pytest.fixture
def one_gibibyte_more():
    """Limits the address space to what is in use and 1 GiB."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory(0) + 2**30, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limit)


def test_out_of_memory_in_workspace_is_a_python_error(one_gibibyte_more) -> None:
    n, many = 600, 4096
    x, dx, a = torch.randn(n, 10_000), torch.empty(n, 10_000), torch.randn(1, n, n)
    stats = torch.empty(1, 2, dtype=torch.float64)
    views = [
        (t.data_ptr(), DTYPE_CODES[t.dtype], n, t.size(1), t.stride(0), 1, 1, 0) for t in (x, dx)
    ]
    calls = {
        "gram": lambda threads: _native.gram(
            views[:1], 1, a.data_ptr(), 1, n, stats.data_ptr(), threads
        ),
        "apply": lambda threads: _native.apply(
            a.data_ptr(), 1, n, views[:1], views[1:], True, threads
        ),
    }
    for call in calls.values():
        # Allocated before any thread starts, so that none of the 4096 does.
        tasks = len(os.listdir("/proc/self/task"))
        with pytest.raises(MemoryError):
            call(many)
        assert len(os.listdir("/proc/self/task")) == tasks
        call(2)
    torch.testing.assert_close(a, pyguide.gram([x]))
