"""The saved state of an unfinished job."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyguide.torch_files import DamagedFile, load_tensors, save_tensors

__all__ = ["Checkpoint"]


@dataclass
class Checkpoint:
    """A file from which a job goes on, written every `seconds` at the end of an epoch.

    Attributes
    ----------
    path : Path
        The file; it is replaced at once, so a kill leaves the old or the new one.
    job : dict
        What the job's result depends on, as JSON types; the state of another job is refused.
    seconds : float
        Least time between two writes; 0 writes after every epoch.
    """

    path: Path
    job: Mapping[str, Any]
    seconds: float
    _written: float = field(default_factory=time.monotonic)

    def load(self, note: Callable[[str], None]) -> dict[str, Any] | None:
        """The state to go on from, or None to start; tells `note` why a file is not used."""
        try:
            saved = load_tensors(self.path)
            job, state = saved["job"], saved["state"]
        except FileNotFoundError:
            return None
        except (DamagedFile, LookupError, TypeError) as error:
            note(f"starts again: {error}")
            return None
        if job != self.job:
            note(f"starts again: {self.path} is of another configuration")
            return None
        return state

    def is_due(self) -> bool:
        """Whether the last write is long enough ago."""
        return time.monotonic() - self._written >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state."""
        save_tensors(self.path, {"job": dict(self.job), "state": state})
        self._written = time.monotonic()
