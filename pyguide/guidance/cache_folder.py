"""The folder of a guide cache: its files, who may write them, and what they are of."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from pyguide.files import lock, read_json, unlock, write_json
from pyguide.guidance.cache_key import CacheKey, difference
from pyguide.torch_files import load_tensors, save_tensors

__all__ = ["CacheFolder"]

_FORMAT = 1
# To wait for the disk takes time; the work of so many seconds may be lost in a kill.
_SECONDS_BETWEEN_RECORDS = 10.0


class CacheFolder:
    """Tensors in mapped files, a description of them, and a record of the samples in them.

    One process at a time may write, which holds a lock until :meth:`close`. The order of its
    writes is such that it can be killed at any moment: the description is written when the
    files are there, and a record of samples when their data are on the disk.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    key : CacheKey
        What the tensors depend on.

    Raises
    ------
    ValueError
        If the folder has another key.
    """

    def __init__(self, path: Path, key: CacheKey) -> None:
        self.path = path
        self._key = key
        self._lock: TextIO | None = None
        # A forked process has this object too, but not the right to write.
        self._process = os.getpid()
        self._unrecorded: tuple[Tensor, list[str]] | None = None
        self._recorded_at = time.monotonic()
        path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> None:
        """Become the one process that writes; UserError if another one does."""
        self._lock = lock(self.path / "lock")

    def close(self) -> None:
        """Write the record, and let others write."""
        if self._lock is not None and os.getpid() == self._process:
            self.write_record()
            unlock(self._lock)
            self._lock = None

    def read_description(self) -> Any:
        """What :meth:`describe` wrote, None if nothing; ValueError if it is of another key."""
        path = self.path / "key.json"
        if not path.exists():
            return None
        kept = read_json(path)
        if kept["format"] != _FORMAT:
            raise ValueError(f"{self.path} is of another version of pyguide: remove it")
        found = difference(kept["key"], self._key)
        if found:
            raise ValueError(
                f"the guide cache {self.path} is stale or of other activations: {found}. Give "
                "another folder, or remove this one to fill it anew"
            )
        return kept["description"]

    def describe(self, description: Any) -> None:
        """Write JSON that says which tensors there are."""
        value = {"format": _FORMAT, "key": self._key, "description": description}
        write_json(self.path / "key.json", value)

    def read_record(self) -> Tensor | None:
        """What :meth:`record` wrote."""
        path = self.path / "present.pt"
        present: Tensor | None = load_tensors(path)["present"] if path.exists() else None
        return present

    def record(self, present: Tensor, names: Iterable[str]) -> None:
        """Write, now and then, which samples are present in the files `names`: (N,) bool."""
        self._unrecorded = present, list(names)
        if time.monotonic() - self._recorded_at >= _SECONDS_BETWEEN_RECORDS:
            self.write_record()

    def write_record(self) -> None:
        """Write what :meth:`record` was told, if it has not yet."""
        if self._unrecorded is None:
            return
        present, names = self._unrecorded
        self.sync(names)
        save_tensors(self.path / "present.pt", {"present": present})
        self._unrecorded = None
        self._recorded_at = time.monotonic()

    def sync(self, names: Iterable[str]) -> None:
        """Wait until these files are on the disk."""
        for name in names:
            with (self.path / name).open("rb") as file:
                os.fsync(file)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A new file, mapped. OSError where there is not enough space for it."""
        size = math.prod(shape) * dtype.itemsize
        path = self.path / name
        with path.open("wb") as file:
            try:
                # A write to a mapped page without a place on the disk would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                path.unlink()
                raise OSError(
                    error.errno, f"the guide cache needs {size} bytes: {error.strerror}", str(path)
                ) from error
        return self.mapped(name, shape, dtype)

    def mapped(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A file of :meth:`allocate`, mapped; changes go to the file only under the lock."""
        path, count = self.path / name, math.prod(shape)
        size = path.stat().st_size if path.exists() else 0
        if size != count * dtype.itemsize:
            raise ValueError(
                f"{path} is damaged: it has {size} bytes, not {count * dtype.itemsize}. Remove "
                f"{self.path} to fill it anew"
            )
        shared = self._lock is not None
        return torch.from_file(str(path), shared=shared, size=count, dtype=dtype).view(shape)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those that are there."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
