"""Where a benchmark runs: its clocks, its memory and its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyguide.bench.ceilings import Probes, cpu_probes
from pyguide.bench.memory import peak_memory
from pyguide.bench.timing import Clock, host_clock
from pyguide.bench.workloads import Work, Workload
from pyguide.memory import available_bytes

__all__ = ["CPU", "DEVICES", "UnitWork", "device_named"]


@dataclass(frozen=True)
class UnitWork:
    """FLOP that a unit, named as in :class:`Ceilings`, must do at least."""

    unit: str
    flop: int


class CPU:
    """The processor; other devices override what differs there.

    Attributes
    ----------
    arithmetic : tuple of str
        What is run unless the user says.
    caches : dict of str to Clock
        A clock for each state of the caches in which calls are timed.
    host : Clock, optional
        Seconds until a call returns, where that is not when its work is done.
    sample_seconds : float
        Least length of a sample.
    """

    name = "cpu"
    torch_device = torch.device("cpu")
    arithmetic: tuple[str, ...] = ("highest",)
    sample_seconds = 0.02
    host: Clock | None = None

    def __init__(self, *, quick: bool):
        self.quick = quick
        self.caches: dict[str, Clock] = {"warm": host_clock}

    def missing(self) -> str | None:
        """Why it cannot be used, and what to do; None if it can."""
        return None

    def runs_by_default(self, load: Workload) -> bool:
        """Whether a workload is run unless the user says."""
        return not load.input_bytes  # those ask how fast a GPU streams

    def describe(self) -> dict[str, object]:
        """What to record besides the machine's processor."""
        return {}

    def probes(self) -> Probes:
        """What measures its limits."""
        return cpu_probes(quick=self.quick)

    def unit_work(self, work: Work, arithmetic: str) -> UnitWork:
        """What its units have to do for a workload."""
        return UnitWork("fma", work.flop)

    def synchronize(self) -> None:
        """Wait for all work."""

    def free_bytes(self) -> int | None:
        """Memory that a workload can take; None if unknown."""
        return available_bytes()

    def peak_memory(self, load: Workload, n: int, seed: int, name: str) -> dict[str, int] | str:
        """Memory that one call of a candidate adds, in a process of its own."""
        return peak_memory(load, n, seed, name, torch.get_num_threads())


def _cuda(*, quick: bool) -> CPU:
    from pyguide.bench.cuda import CUDA

    return CUDA(quick=quick)


#: Devices by the name that ``--device`` takes.
DEVICES: dict[str, Callable[..., CPU]] = {"cpu": CPU, "cuda": _cuda}


def device_named(name: str, *, quick: bool) -> CPU:
    """The device of that name.

    Raises
    ------
    KeyError
    """
    return DEVICES[name](quick=quick)
