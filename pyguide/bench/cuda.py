"""CUDA devices: events as clocks, warm and cold L2, matrix rates and copy bandwidth."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyguide import cuda_library
from pyguide.bench.candidates import Run, candidate
from pyguide.bench.ceilings import Probes
from pyguide.bench.device import CPU, UnitWork
from pyguide.bench.timing import Clock
from pyguide.bench.workloads import Problem, Work, Workload

__all__ = ["CUDA", "unit_work"]

_REPEATS = 5

# The unit that multiplies, and how many of its products one product of a Gram matrix and of a
# gradient takes: float32 at "highest" is three TF32 products, and where features are 16-bit the
# coefficients are sums of two 16-bit numbers.
_UNITS = {
    "highest": ("tf32", 3, 3),
    "high": ("tf32", 1, 1),
    "medium": ("bf16", 1, 2),
    "bf16": ("bf16", 1, 2),
}


def unit_work(work: Work, arithmetic: str) -> UnitWork:
    """FLOP of the instructions that pyguide's kernels multiply with."""
    unit, gram, apply = _UNITS[arithmetic]
    return UnitWork(unit, gram * work.gram_flop + apply * work.apply_flop)


class CUDA(CPU):
    """The current CUDA device.

    Calls are timed by events on the stream, many in a row, so that a sample is the longer of what
    the host and what the device takes. Before each call with a cold L2 a buffer of four times
    its size is written, outside the timed part.
    """

    name = "cuda"
    arithmetic = ("highest", "high", "bf16", "medium")
    sample_seconds = 0.005

    def __init__(self, *, quick: bool):
        super().__init__(quick=quick)
        self.caches = {"warm": _warm, "cold": self._cold}
        self.host: Clock | None = _until_return
        self._flushed: Tensor | None = None

    @property
    def torch_device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", torch.cuda.current_device())

    def missing(self) -> str | None:
        if not torch.cuda.is_available():
            return "torch finds no CUDA device (see torch.cuda.is_available and nvidia-smi)"
        return cuda_library.why_missing()

    def runs_by_default(self, load: Workload) -> bool:
        return load.dtype == torch.float32  # the arithmetic makes all of them 16-bit

    def describe(self) -> dict[str, object]:
        properties = torch.cuda.get_device_properties(self.torch_device)
        return {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }

    def probes(self) -> Probes:
        size, count = (512, 1 << 20) if self.quick else (8192, 1 << 30)
        return {
            "tf32": lambda: _matmul(size, torch.float32),
            "bf16": lambda: _matmul(size, torch.bfloat16),
            "copy": lambda: _copy(count),
        }

    def unit_work(self, work: Work, arithmetic: str) -> UnitWork:
        return unit_work(work, arithmetic)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def free_bytes(self) -> int | None:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def peak_memory(self, load: Workload, n: int, seed: int, name: str) -> dict[str, int] | str:
        """Of a second call, in torch's allocator."""
        if candidate(name).graph:
            return "not available: a replay works in its graph's own memory"
        run = candidate(name).make(load)
        assert run is not None
        problem = load.make(n, seed, self.torch_device)
        run(problem)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run(problem)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        after = torch.cuda.memory_allocated() - before
        del result
        return {"peak": peak, "retained": after}

    def _cold(self, run: Run, problem: Problem, calls: int) -> float:
        """A clock that empties the L2 before each call."""
        if self._flushed is None:
            size = 4 * torch.cuda.get_device_properties(self.torch_device).L2_cache_size
            self._flushed = torch.empty(size, dtype=torch.uint8, device=self.torch_device)
        starts, ends = _events(calls), _events(calls)
        for start, end in zip(starts, ends, strict=True):
            self._flushed.zero_()
            start.record()
            run(problem)
            end.record()
        torch.cuda.synchronize()
        return sum(s.elapsed_time(e) for s, e in zip(starts, ends, strict=True)) / 1e3


def _events(count: int) -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]


def _warm(run: Run, problem: Problem, calls: int) -> float:
    return _seconds(lambda: run(problem), calls)


def _until_return(run: Run, problem: Problem, calls: int) -> float:
    """The host's time, of calls that find the device idle."""
    seconds = 0.0
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(problem)
        seconds += time.perf_counter() - start
    torch.cuda.synchronize()
    return seconds


def _seconds(function: Callable[[], object], calls: int = 1) -> float:
    start, end = _events(2)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _fastest(function: Callable[[], object]) -> float:
    function()
    return min(_seconds(function) for _ in range(_REPEATS))


def _matmul(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of torch's product of random matrices (zeros take less power, and run faster)."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return 2 * size**3 / _fastest(lambda: torch.mm(a, b, out=out))
    finally:
        torch.set_float32_matmul_precision(before)


def _copy(size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source))


def _driver() -> str | None:
    """The driver's version, where nvidia-smi tells it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.split("\n", 1)[0].strip() or None
