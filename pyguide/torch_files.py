"""Tensors in files: written at once, and never read damaged or with code in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from pyguide.files import atomic_write

__all__ = ["DamagedFile", "load_tensors", "save_tensors"]


class DamagedFile(Exception):
    """A file that is cut, changed, or of something else."""


def save_tensors(path: Path, value: Any) -> None:
    """Write tensors, numbers and strings in dicts and lists, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(value, temporary)


def load_tensors(path: Path) -> Any:
    """Read what :func:`save_tensors` wrote, on the CPU.

    Raises
    ------
    DamagedFile
        If a byte differs, by the checksums of the file.
    FileNotFoundError
        If it is not there.
    """
    try:
        # torch.load leaves the checksums of the zip archive aside.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise DamagedFile(f"{path} is damaged: wrong checksum of {bad}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, DamagedFile):
        raise
    except Exception as error:
        # zipfile and torch raise almost every built-in exception for damaged bytes.
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DamagedFile(f"{path} is damaged: {reason[0]}") from error
