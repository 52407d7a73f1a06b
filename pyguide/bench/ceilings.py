"""What the machine can do at most: float32 multiply-adds and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pyguide import _native

__all__ = ["Ceilings"]

_REPEATS = 3  # of each measurement, so that one disturbance is not the sample


class Ceilings:
    """Samples of each rate, taken all along a run; the ceiling is the largest.

    Attributes
    ----------
    samples : dict of str to list of float
        ``"probe"`` (fused multiply-adds on registers) and ``"sgemm"`` (torch's float32 matrix
        product) in FLOP/s; ``"copy"`` in bytes/s, read and written.
    """

    def __init__(self, *, quick: bool, samples: dict[str, list[float]] | None = None):
        self.gemm_size = 256 if quick else 2048
        self.probe_seconds = 0.002 if quick else 0.05
        self.copy_count = (1 << 20) if quick else (1 << 26)  # float32; 256 MiB
        self.samples = samples or {"probe": [], "sgemm": [], "copy": []}

    def measure(self) -> None:
        """Add a sample of each, at torch's number of threads."""
        self.samples["probe"].append(_probe(self.probe_seconds))
        self.samples["sgemm"].append(_sgemm(self.gemm_size))
        self.samples["copy"].append(_copy(self.copy_count))

    @property
    def flops(self) -> float:
        """FLOP/s that nothing exceeds: at least what sgemm reached."""
        return max(self.samples["probe"] + self.samples["sgemm"])

    @property
    def bandwidth(self) -> float:
        """Bytes/s of a copy."""
        return max(self.samples["copy"])

    def seconds(self, flop: float, bytes: float) -> float:
        """Least time of that much work."""
        return max(flop / self.flops, bytes / self.bandwidth)


def _fastest(function: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _probe(least: float) -> float:
    """At as many steps as take ``least`` seconds."""
    threads = torch.get_num_threads()
    steps, seconds = 1 << 12, 0.0
    while seconds < least:
        steps *= 2
        start = time.perf_counter()
        flop = _native.fma_peak(steps, threads)
        seconds = time.perf_counter() - start
    return flop / min(seconds, _fastest(lambda: _native.fma_peak(steps, threads)))


def _sgemm(n: int) -> float:
    a, b, out = torch.ones(n, n), torch.ones(n, n), torch.empty(n, n)
    torch.mm(a, b, out=out)
    return 2 * n**3 / _fastest(lambda: torch.mm(a, b, out=out))


def _copy(count: int) -> float:
    source, target = torch.ones(count), torch.zeros(count)
    return 2 * 4 * count / _fastest(lambda: target.copy_(source))
