"""Tensors in files: written at once, and never read damaged or with code in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from pyguide.errors import UserError, first_line
from pyguide.files import atomic_write

__all__ = ["DamagedFile", "load_tensors", "other_kind", "read_torch_file", "save_tensors"]


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
        raise DamagedFile(f"{path} is damaged: {first_line(error)}") from error


def read_torch_file(path: Path) -> Any:
    """Read a user's file of torch.save on the CPU, mapped into memory where its format allows.

    Raises
    ------
    UserError
        If it is missing, not such a file, or holds more than tensors: that would run code.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, or is no file of torch.save; only tensors are "
            "read, because anything else can run code: save its state_dict() alone"
        ) from error
    except Exception as error:
        raise UserError(f"{path}: torch cannot read it: {first_line(error)}") from error


def other_kind(value: Any) -> str | None:
    """What a value read from a file is, unless it is a dense tensor with its values: then None."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_nested:
        return "a nested tensor"
    if value.layout is not torch.strided:
        return f"a {str(value.layout).removeprefix('torch.')} tensor"
    if value.is_quantized:
        return "a quantized tensor"
    return "a meta tensor, without values" if value.is_meta else None
