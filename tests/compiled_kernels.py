"""What a library of CUDA kernels was compiled to, as NVIDIA's binary tools print it."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

# Every multiprocessor since sm_80 has so many; a warp takes them by 256.
REGISTERS = 65536
_REGISTERS_AT_ONCE = 8  # for each of a warp's 32 threads


def tool(package: str, name: str) -> Path:
    """A program of a package from PyPI, which are not on the PATH."""
    installed = distribution(package)
    (path,) = (file for file in installed.files or [] if file.name == name)
    return Path(str(installed.locate_file(path)))


def cuobjdump(*arguments: object) -> subprocess.Popen[str]:
    disassembler = tool("nvidia-cuda-nvdisasm", "nvdisasm").parent
    command = [tool("nvidia-cuda-cuobjdump", "cuobjdump"), *arguments]
    env = {**os.environ, "NVDISASM_PATH": str(disassembler)}
    return subprocess.Popen(
        [str(word) for word in command], env=env, stdout=subprocess.PIPE, text=True
    )


@dataclass(frozen=True)
class Resources:
    """What one thread of a kernel takes: registers, and bytes of stack frame and local memory.

    Spilled registers are part of the stack frame.
    """

    registers: int
    stack: int
    local: int


def resources(library: Path) -> dict[tuple[str, str], Resources]:
    """Of each (architecture, kernel)."""
    found = {}
    with cuobjdump("-res-usage", library) as process:
        for line in process.stdout:
            if match := re.match(r"arch = (\w+)", line):
                arch = match[1]
            elif match := re.match(r" Function (\w+):", line):
                kernel = match[1]
            elif match := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
                found[arch, kernel] = Resources(*map(int, match.groups()))
    return found


@dataclass(frozen=True)
class LaunchBounds:
    """Threads of a block, and blocks that must fit a multiprocessor, as the source declares."""

    threads: int
    blocks: int

    def registers(self, each: int) -> int:
        """How many the blocks take if each thread needs so many."""
        rounded = -(-each // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
        return rounded * self.threads * self.blocks


def launch_bounds(library: Path) -> dict[str, LaunchBounds]:
    """Of each kernel, from its PTX."""
    found = {}
    with cuobjdump("-ptx", library) as process:
        for line in process.stdout:
            if match := re.match(r"\.visible \.entry (\w+)", line):
                kernel = match[1]
            elif match := re.match(r"\.maxntid (\d+)", line):
                threads = int(match[1])
            elif match := re.match(r"\.minnctapersm (\d+)", line):
                found[kernel] = LaunchBounds(threads, int(match[1]))
    return found


def instructions(library: Path) -> dict[tuple[str, str], set[str]]:
    """The machine instructions of each (architecture, kernel), with their modifiers."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    here: set[str] = set()
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
    with cuobjdump("-sass", library) as process:
        for line in process.stdout:
            if match := instruction.match(line):
                here.add(match[1])
            elif match := re.match(r"arch = (\w+)", line):
                arch = match[1]
            elif match := re.match(r"\s+Function : (\w+)", line):
                here = found[arch, match[1]]
    return dict(found)


def exported_symbols(library: Path) -> list[str]:
    """What the library defines for whoever loads it."""
    command = ["nm", "-D", "--defined-only", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in lines.splitlines()]
