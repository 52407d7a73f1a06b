"""Files written so that a reader never sees half of one, also after a power failure."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pyguide.errors import UserError

__all__ = ["atomic_write", "lock", "read_json", "unlock", "write_json", "writing"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it when the block succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes files private; this one is as readable as its directory's others.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a UserError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror or error}") from error


def lock(path: Path) -> TextIO:
    """Open ``path`` and hold its lock until it is closed or this process ends.

    Raises
    ------
    UserError
        While another has it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another process is writing to {path.parent}: let it end first") from error
    except OSError:
        file.close()
        raise
    return file


def unlock(file: TextIO) -> None:
    """Give up what :func:`lock` gave, also for child processes that inherited it, and close it."""
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
