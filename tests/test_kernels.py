"""What the public API cannot reach: conversions, offsets beyond 2^31, threads, bad pointers."""

from __future__ import annotations

import contextlib
import gc
import mmap
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pyguide
from pyguide import _native, reference
from pyguide.ops import cpu


def test_every_half_and_bfloat16_is_widened_exactly(instruction_set) -> None:
    # Identity coefficients copy X through widening and narrowing.
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        every = bits.view(dtype)
        finite = every[torch.isfinite(every)]
        x = finite.reshape(1, -1).clone()
        (copied,) = cpu.apply(torch.ones(1, 1, 1), [x], shifted=False)
        # Equal as numbers: +0 is added to -0 in the sums.
        assert torch.equal(copied, x)
        # Infinities and NaN stay what they are.
        for value in (float("inf"), float("-inf"), float("nan")):
            special = torch.full((1, 40), value, dtype=dtype)
            (copied,) = cpu.apply(torch.ones(1, 1, 1), [special], shifted=False)
            torch.testing.assert_close(copied, special, equal_nan=True, rtol=0, atol=0)


def test_half_subnormals_survive_flushed_denormals(threads) -> None:
    # The flag is per thread: only torch's own would flush, and the result depend on the threads.
    if not torch.set_flush_denormal(True):
        pytest.fail("this CPU cannot flush denormals")
    try:
        x = (torch.randn(256, 700) * 3e-6).half()
        y = (torch.randn(256, 700) * 3e-6 + 0.5 * x.float()).half()
        exact = reference.cka(x.double(), y.double(), debiased=True).item()
        for count in (1, 2):
            threads(count)
            assert pyguide.cka(x, y, debiased=True).item() == pytest.approx(exact, abs=1e-5)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrowing_rounds_to_nearest_even(instruction_set, dtype) -> None:
    # Scaling by float32 factors gives every kind of rounding: ties, subnormals, overflow.
    bits = torch.arange(0, 2**16, 3, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype)
    x = every[torch.isfinite(every)].reshape(1, -1).clone()
    for factor in (0.5, 1.0 + 2.0**-11, 1.0 + 2.0**-8, 3.0, 0.3, 2.0**-10, 2.0**-20, 1e5):
        (scaled,) = cpu.apply(torch.full((1, 1, 1), factor), [x], shifted=False)
        expected = (x.float() * torch.tensor(factor)).to(dtype)
        assert torch.equal(scaled, expected)


def test_large_half_gradients_overflow_to_infinity() -> None:
    x = torch.tensor([[65504.0, 65519.9, 1.0]], dtype=torch.float16)
    (scaled,) = cpu.apply(torch.full((1, 1, 1), 1.001), [x], shifted=False)
    assert torch.equal(scaled, (x.float() * 1.001).half()) and scaled[0, 0].isinf()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns_far", [False, True])
def test_offsets_beyond_2_to_the_31(dtype: torch.dtype, columns_far: bool) -> None:
    # Address space only: a sparse mapping of which a few pages are touched.
    stride = 2**31 + 4096
    rows, cols = (6, 5) if not columns_far else (5, 6)
    with _sparse((5 * stride + 64) * torch.finfo(dtype).bits // 8) as memory:
        strides = (1, stride) if columns_far else (stride, 1)
        far = memory.view(dtype).as_strided((rows, cols), strides)
        near = torch.randn(rows, cols).to(dtype)
        far.copy_(near)
        x, y = far.detach().requires_grad_(), torch.randn(rows, 3)
        value = pyguide.cka(x, y)
        (grad,) = torch.autograd.grad(value, x)
        copy = near.clone().requires_grad_()
        expected = pyguide.cka(copy, y)
        (expected_grad,) = torch.autograd.grad(expected, copy)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, expected_grad)
        del memory, far, x


@contextlib.contextmanager
def _sparse(size: int) -> Iterator[torch.Tensor]:
    """Address space of ``size`` bytes, of which only touched pages become memory."""
    no_reserve = 0x4000  # MAP_NORESERVE on Linux; the mmap module names it from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    with mmap.mmap(-1, size, flags=flags) as memory:
        yield torch.frombuffer(memory, dtype=torch.uint8)
        gc.collect()


@pytest.mark.parametrize("n", [6, 600])  # one pass, and sums drained into double
def test_output_offsets_beyond_2_to_the_31(n: int) -> None:
    stride = 2**33 // (n - 1)
    with _sparse(4 * (stride * (n - 1) + 64)) as memory:
        far = memory.view(torch.float32).as_strided((n, 5), (stride, 1))
        x = torch.randn(n, 5)
        a = torch.randn(n, n)
        a = (a + a.T).contiguous()
        view = (x.data_ptr(), 1, n, 5, 5, 1, 1, 0)
        out = (far.data_ptr(), 1, n, 5, stride, 1, 1, 0)
        _native.apply(a.data_ptr(), 1, n, [view], [out], False, 1)
        torch.testing.assert_close(far.clone(), a @ x, rtol=1e-4, atol=1e-4)
        del far, memory


def test_stack_offsets_beyond_2_to_the_31() -> None:
    n, layers = 256, 40_000
    stats = torch.ones(layers, 2, dtype=torch.float64)
    with _sparse(4 * n * n * layers) as memory:
        stack = memory.view(torch.float32).view(layers, n, n)
        last = layers - 1
        x, y = torch.randn(n, 300), torch.randn(n, 300)
        grams, pair_stats = cpu._gram([x, y], 1)
        stack[0], stack[last] = grams[0], grams[1]
        stats[0], stats[last] = pair_stats[0], pair_stats[1]
        values = torch.zeros(1, dtype=torch.float64)
        flags = torch.zeros(1, dtype=torch.bool)
        common = (stack.data_ptr(), 1, layers, n, stats.data_ptr(), [0], [last], 1)
        _native.alignment(*common, values.data_ptr(), flags.data_ptr(), 2)
        assert values.item() == pytest.approx(pyguide.cka(x, y).item(), abs=1e-6)
        grad = torch.ones(1, dtype=torch.float64)
        out = torch.zeros(1, n, n)
        _native.coefficients(
            *common, values.data_ptr(), flags.data_ptr(), grad.data_ptr(), [last], out.data_ptr(), 2
        )
        y = y.requires_grad_()
        (expected,) = torch.autograd.grad(pyguide.cka(x, y), y)
        torch.testing.assert_close(cpu.apply(out, [y.detach()], shifted=True)[0], expected)
        del stack, memory


@pytest.mark.parametrize("counts", [(1, 2), (1, 3), (1, 7)])
def test_thread_counts_agree(threads, counts, related_layers) -> None:
    layers = related_layers(300, [2000, 10, 513], torch.float32)
    results = []
    for count in counts:
        threads(count)
        xs = [x.clone().requires_grad_() for x in layers]
        values = pyguide.cka_pairs(xs, xs, pairs=[(0, 1), (1, 2), (0, 2)])
        results.append([values, *torch.autograd.grad(values.sum(), xs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_many_small_problems() -> None:
    # Per-token CKA: hundreds of 64 x 64 problems in one call.
    target = torch.randn(64, 100, 48, requires_grad=True)
    guide = torch.randn(64, 100, 32)
    xs = [target[:, t] for t in range(100)]
    ys = [guide[:, t] for t in range(100)]
    values = pyguide.cka_pairs(xs, ys, debiased=True)
    (grad,) = torch.autograd.grad(values.sum(), target)
    copy = target.detach().double().requires_grad_()
    expected = reference.cka_pairs(
        [copy[:, t] for t in range(100)], [y.double() for y in ys], debiased=True
    )
    (expected_grad,) = torch.autograd.grad(expected.sum(), copy)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-3, atol=1e-6)


def test_the_gil_is_released() -> None:
    x = torch.randn(512, 40_000)
    pyguide.gram([x[:, :100]])
    running, turns = threading.Event(), 0

    def count() -> None:
        nonlocal turns
        while running.is_set():
            turns += 1
            time.sleep(1e-3)

    running.set()
    other = threading.Thread(target=count)
    other.start()
    before = turns
    start = time.perf_counter()
    pyguide.gram([x])
    elapsed = time.perf_counter() - start
    during = turns - before
    running.clear()
    other.join()
    # Held, the GIL would let the other thread run once at most, whatever the machine's load.
    assert elapsed > 0.02 and during >= 5


def test_no_parallel_region_at_one_thread() -> None:
    # In a fresh process, since this one may have a thread pool already.
    script = """
import os, torch
torch.set_num_threads(1)
import pyguide
x = torch.randn(300, 20_000, requires_grad=True)
before = len(os.listdir("/proc/self/task"))
value = pyguide.cka(x, torch.randn(300, 1000)) + pyguide.gram([x]).mean()
# Autograd runs backward in the calling thread on the CPU.
value.backward()
assert len(os.listdir("/proc/self/task")) == before, "threads were started"
torch.set_num_threads(2)
pyguide.gram([x.detach()])
assert len(os.listdir("/proc/self/task")) > before, "two threads were asked for"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_native_module_checks_what_it_is_given() -> None:
    x = torch.randn(8, 3)
    k = torch.empty(1, 8, 8)
    stats = torch.empty(1, 2, dtype=torch.float64)
    good = (x.data_ptr(), 1, 8, 3, 3, 1, 1, 0)
    for view, centering, dtype, n, message in [
        ((0, 1, 8, 3, 3, 1, 1, 0), 1, 1, 8, "null pointer"),
        ((x.data_ptr(), 9, 8, 3, 3, 1, 1, 0), 1, 1, 8, "dtype"),
        ((x.data_ptr(), 1, 7, 3, 3, 1, 1, 0), 1, 1, 8, "number of samples"),
        ((x.data_ptr(), 1, 8, 0, 3, 1, 1, 0), 1, 1, 8, "no features"),
        ((x.data_ptr(), 1, 8, 3, -3, 1, 1, 0), 1, 1, 8, "strides"),
        ((x.data_ptr(), 1, 8, 3, 3, 1, 0, 0), 1, 1, 8, "no tokens"),
        ((x.data_ptr(), 1, 8, 3, 3, 1, 2**40, 2**40), 1, 1, 8, "beyond the address space"),
        (good, 5, 1, 8, "centering"),
        (good, 1, 2, 8, "float32 or float64"),
        (good, 2, 1, 3, "number of samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            _native.gram([view], centering, k.data_ptr(), dtype, n, stats.data_ptr(), 1)
    two_tokens = (x.data_ptr(), 1, 8, 1, 3, 1, 2, 1)
    with pytest.raises(ValueError, match="layers differ in tokens"):
        _native.gram([good, two_tokens], 1, k.data_ptr(), 1, 8, stats.data_ptr(), 1)
    with pytest.raises(ValueError, match="threads"):
        _native.gram([good], 1, k.data_ptr(), 1, 8, stats.data_ptr(), 0)
    with pytest.raises(ValueError, match="'sse9' is not available"):
        _native.gram([good], 1, k.data_ptr(), 1, 8, stats.data_ptr(), 1, "sse9")


def test_one_openmp_runtime() -> None:
    # In a process of its own: scikit-learn, which other tests import, brings another one.
    program = """
import torch
import pyguide
pyguide.gram([torch.randn(300, 3000)])
maps = open("/proc/self/maps").read().splitlines()
print(*{line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}, sep="\\n")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert len(run.stdout.splitlines()) == 1, run.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 has these instruction sets")
def test_instances_are_chosen_by_what_the_cpu_has() -> None:
    info = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in info.splitlines() if line.startswith("flags")).split())
    expected = ["portable"]
    if {"avx2", "fma"} <= flags:
        expected.insert(0, "avx2")
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags:
        expected.insert(0, "avx512")
    assert _native.instruction_sets() == expected


def test_instances_agree(monkeypatch) -> None:
    assert _native.instruction_sets()[-1] == "portable"
    x, y = torch.randn(130, 700), torch.randn(130, 70)
    values = []
    for name in _native.instruction_sets():
        monkeypatch.setattr(cpu, "instruction_set", name)
        values.append(pyguide.cka(x, y, debiased=True).item())
    np.testing.assert_allclose(values, values[0], atol=1e-7)
