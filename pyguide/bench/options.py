"""What a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyguide.bench.arithmetic import ARITHMETIC, Arithmetic
from pyguide.bench.candidates import CANDIDATES
from pyguide.bench.device import CPU
from pyguide.bench.workloads import WORKLOADS, Workload, workload

__all__ = ["Case", "Options"]


@dataclass(frozen=True)
class Case:
    """One workload at one batch size in one arithmetic."""

    load: Workload
    n: int
    arithmetic: Arithmetic

    @property
    def key(self) -> tuple[str, int, str]:
        return self.load.name, self.n, self.arithmetic.name


@dataclass(frozen=True)
class Options:
    """What is run; two runs with the same options can be joined.

    ``workloads`` and ``arithmetic`` default to the device's.
    """

    device: str = "cpu"
    workloads: tuple[str, ...] = ()
    n: tuple[int, ...] = (256,)
    arithmetic: tuple[str, ...] = ()
    candidates: tuple[str, ...] = tuple(c.name for c in CANDIDATES)
    rounds: int = 15
    budget: float = 120.0
    seed: int = 0
    quick: bool = False

    def on(self, device: CPU) -> Options:
        """With the device's defaults filled in."""
        default = tuple(w.name for w in WORKLOADS if device.runs_by_default(w))
        return replace(
            self,
            workloads=self.workloads or default,
            arithmetic=self.arithmetic or device.arithmetic,
        )

    def cases(self) -> list[Case]:
        """Every workload with every batch size and arithmetic, small batches first."""
        cases = []
        for name in self.workloads:
            load = workload(name).tiny() if self.quick else workload(name)
            for n in self.n if load.n is None else (load.n,):
                for arithmetic in (ARITHMETIC[a] for a in self.arithmetic):
                    cases.append(Case(load.at(n, arithmetic.dtype), n, arithmetic))
        return sorted(cases, key=lambda case: case.n > 256)
