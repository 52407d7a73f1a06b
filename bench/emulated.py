"""Runs Python code whose CPU tensors are computed by the emulated build of the CUDA kernels.

usage: emulated.py SCRIPT | -m MODULE | -c CODE [ARGUMENTS]
       emulated.py --build

The benchmarks get a device "emulated". It is slow, and its times mean nothing.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from emulated_backend import emulated_backend
from emulation import build

from pyguide.bench.cuda import unit_work
from pyguide.bench.device import CPU, DEVICES, UnitWork
from pyguide.bench.timing import host_clock
from pyguide.bench.workloads import Work, Workload


class Emulated(CPU):
    """The emulator in the place of a GPU."""

    name = "emulated"
    arithmetic = ("highest", "high", "bf16", "medium")

    def __init__(self, *, quick: bool):
        super().__init__(quick=quick)
        self.caches = {"warm": host_clock, "cold": host_clock}
        self.host = host_clock

    def runs_by_default(self, load: Workload) -> bool:
        return load.dtype == torch.float32

    def describe(self) -> dict[str, object]:
        return {"gpu": "none (emulated)", "driver": None}

    def unit_work(self, work: Work, arithmetic: str) -> UnitWork:
        return UnitWork("fma", unit_work(work, arithmetic).flop)

    def peak_memory(self, load: Workload, n: int, seed: int, name: str) -> str:
        return "not available: emulated"


def main(arguments: list[str]) -> None:
    library = build("pyguide_cuda_emulated") / "libpyguide_cuda_emulated.so"
    if arguments == ["--build"]:
        return
    DEVICES["emulated"] = Emulated
    with emulated_backend(library):
        how, *rest = arguments
        if how == "-m":
            module, *sys.argv[1:] = rest
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        elif how == "-c":
            code, *rest = rest
            sys.argv = ["-c", *rest]
            exec(code, {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
