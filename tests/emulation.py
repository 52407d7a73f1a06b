"""The CUDA library compiled for the CPU (tests/emulator): how it is built and controlled."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def build(target: str, *options: str, folder: str = "emulated") -> Path:
    """Build a target of tests/emulator in build/``folder``; what is up to date is kept."""
    ninja = shutil.which("ninja", path=_PATH)
    assert ninja, "ninja is missing: pip install -e '.[test]'"
    binary = ROOT / "build" / folder
    binary.mkdir(parents=True, exist_ok=True)
    with (binary / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            "cmake",
            "-S",
            ROOT,
            "-B",
            binary,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DPYGUIDE_MODULE=OFF",
            "-DPYGUIDE_CUDA=OFF",
            "-DPYGUIDE_EMULATED=ON",
            *options,
        )
        _run("cmake", "--build", binary, "--target", target)
    return binary / "tests" / "emulator"


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, env={**os.environ, "PATH": _PATH}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"


class Emulator:
    """Controls of the emulated library that this process has loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.pyguide_emulator_seed.argtypes = [ctypes.c_uint64]
        self._library.pyguide_emulator_delete.argtypes = [ctypes.c_char_p]
        self._library.pyguide_emulator_sites.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        self._library.pyguide_emulator_sites.restype = ctypes.c_int64
        self._library.pyguide_emulator_launches.restype = ctypes.c_int64

    def seed(self, seed: int) -> None:
        """Start the random order of blocks and threads from a seed."""
        self._library.pyguide_emulator_seed(seed)

    @contextlib.contextmanager
    def without(self, site: str) -> Iterator[None]:
        """Leave out one barrier or wait."""
        self._library.pyguide_emulator_delete(site.encode())
        try:
            yield
        finally:
            self._library.pyguide_emulator_delete(b"")

    def sites(self) -> set[str]:
        """Names of the barriers and waits that were reached since the last call."""
        buffer = ctypes.create_string_buffer(1 << 16)
        size = self._library.pyguide_emulator_sites(buffer, len(buffer))
        assert size <= len(buffer), "more names than expected"
        return set(buffer.value.decode().splitlines())

    def launches(self) -> int:
        """How many kernels were launched since the last call."""
        return self._library.pyguide_emulator_launches()
