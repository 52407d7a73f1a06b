"""Libraries that stand for another machine's: its driver, or pyguide's kernels and its devices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _compile(source: str, library: Path, **macros: object) -> Path:
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, "-std=c++17", "-shared", "-fPIC", "-I", str(HERE.parent / "csrc")]
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    subprocess.run([*command, *defined, "-o", str(library), str(HERE / source)], check=True)
    return library


def cuda_library(folder: Path, capabilities: str = "90", version: int = 1) -> Path:
    """pyguide's CUDA library where devices have these compute capabilities."""
    library = folder / "fake_cuda.so"
    return _compile("fake_cuda_library.cpp", library, CAPABILITIES=capabilities, VERSION=version)


def driver(folder: Path, version: int, result: int) -> Path:
    """An NVIDIA driver for CUDA ``version`` of which every call returns ``result``."""
    library = folder / "libcuda.so.1"
    return _compile("fake_driver.cpp", library, DRIVER_VERSION=version, RESULT=result)
