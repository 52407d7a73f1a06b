"""What a machine can do at most: multiply-adds of its units and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyguide import _native

__all__ = ["Ceilings", "Probes", "cpu_probes"]

_REPEATS = 3  # of each measurement, so that one disturbance is not the sample

#: Measurements by name: FLOP/s, but bytes/s (read and written) of ``"copy"``.
Probes = dict[str, Callable[[], float]]

# A unit is at least as fast as each of these measurements; others are named as their unit.
_UNITS = {"fma": ("probe", "sgemm")}


@dataclass(frozen=True)
class Ceilings:
    """Samples of each rate, taken all along a run; the ceiling is the largest.

    Attributes
    ----------
    samples : dict of str to list of float
        FLOP/s of the CPU's ``"probe"`` (fused multiply-adds on registers) and ``"sgemm"``
        (torch's float32 matrix product), or of matrix products in ``"tf32"`` and ``"bf16"``;
        ``"copy"`` in bytes/s.
    """

    samples: dict[str, list[float]]

    def measure(self, probes: Probes) -> None:
        """Add a sample of each."""
        for name, probe in probes.items():
            self.samples.setdefault(name, []).append(probe())

    def flops(self, unit: str) -> float:
        """FLOP/s that nothing exceeds."""
        return max(s for name in _UNITS.get(unit, (unit,)) for s in self.samples[name])

    @property
    def bandwidth(self) -> float:
        """Bytes/s of a copy."""
        return max(self.samples["copy"])

    def seconds(self, unit: str, flop: float, bytes: float) -> float:
        """Least time of that much work."""
        return max(flop / self.flops(unit), bytes / self.bandwidth)


def cpu_probes(*, quick: bool) -> Probes:
    """The CPU's, at torch's number of threads."""
    gemm_size = 256 if quick else 2048
    least_seconds = 0.002 if quick else 0.05
    copy_count = (1 << 20) if quick else (1 << 26)  # float32; 256 MiB
    return {
        "probe": lambda: _probe(least_seconds),
        "sgemm": lambda: _sgemm(gemm_size),
        "copy": lambda: _copy(copy_count),
    }


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
