"""Where and with what a benchmark ran."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import pyguide
from pyguide import _native
from pyguide.bench.device import CPU

__all__ = ["cpu_name", "describe"]

_PACKAGE = Path(pyguide.__file__).parent
_PEERS = ("pytorch-cka",)


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe(device: CPU, commit: str | None = None) -> dict[str, object]:
    """Machine, versions and source: what must agree for timings to be joined.

    ``commit`` is for a copy of the source without its history.

    Returns
    -------
    dict
        ``"machine"``, ``"versions"`` and ``"source"``, ready for JSON. The source's digest is
        over the package's files, native module included.
    """
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "instruction_set": _native.instruction_sets()[0],
            "parallel": torch.__config__.parallel_info().split("\n"),
            **device.describe(),
        },
        "versions": {
            "pyguide": pyguide.__version__,
            "compiler": _native.compiler(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{peer: _version(peer) for peer in _PEERS},
        },
        "source": {
            "commit": commit or _git("rev-parse", "HEAD"),
            "dirty": None if changes is None else bool(changes),
            "digest": _digest(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """What git says in the checkout that the package is in; None if it is in none."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".so"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
