"""The folder that ``pyguide compare`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pyguide.analysis.similarity import LayerSimilarity
from pyguide.errors import UserError
from pyguide.files import lock, read_json, unlock, write_json, writing

__all__ = ["Output"]


class Output:
    """One comparison's files, of which this process is the only writer: it holds ``.lock``.

    Parameters
    ----------
    folder : Path
        The folder; :meth:`start` makes it.
    options : dict
        What the result depends on, as JSON types.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder = folder
        self._options = options
        #: The sums of an unfinished comparison.
        self.checkpoint = folder / "unfinished.pt"
        self._lock: TextIO | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            unlock(self._lock)

    @property
    def finished(self) -> bool:
        """Whether the folder has a result."""
        return (self._folder / "similarity.json").exists()

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on with: a result, or sums for it."""
        return self.finished or self.checkpoint.exists()

    def check(self, *, resume: bool) -> None:
        """Lock the folder, if there is one; refuse to overwrite another comparison in it.

        Raises
        ------
        UserError
            If another process has the lock; if the folder has a comparison and `resume` is not
            set, or it has other options.
        """
        with writing(self._folder):
            if not self._folder.exists():
                return
            if self._lock is None:
                self._lock = lock(self._folder / ".lock")
        if not self.resumable:
            return
        state = "a finished" if self.finished else "an unfinished"
        if not resume:
            raise UserError(
                f"{self._folder} holds {state} comparison: choose another --out, or --resume it"
            )
        try:
            before = read_json(self._path)
            differing = [name for name, v in self._options.items() if before[name] != v]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path}: not the options of a comparison ({error})") from error
        if differing:
            names = ", ".join(f"{name.replace('_', '-')} was {before[name]}" for name in differing)
            raise UserError(f"--resume: {self._folder} holds {state} comparison where {names}")

    def start(self, *, resume: bool) -> None:
        """Make the folder, unless there is one, and keep the options.

        Raises
        ------
        UserError
            If it cannot be written, or as :meth:`check`.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        # Another process may have made it since the first check.
        self.check(resume=resume)
        with writing(self._folder):
            write_json(self._path, self._options)

    def similarity(self) -> LayerSimilarity:
        """The finished result.

        Raises
        ------
        UserError
            If its file is damaged.
        """
        try:
            return LayerSimilarity.load(self._folder)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error

    def save(self, similarity: LayerSimilarity) -> list[Path]:
        """Write the result, then remove its sums, and return the paths."""
        with writing(self._folder):
            paths = similarity.save(self._folder)
            self.checkpoint.unlink(missing_ok=True)
        return list(paths)

    def draw(
        self, similarity: LayerSimilarity, *plots: Callable[[LayerSimilarity, Path], None]
    ) -> list[Path]:
        """Write a picture a function, named by it, and return the paths."""
        paths = [self._folder / f"{plot.__name__.removeprefix('plot_')}.png" for plot in plots]
        for plot, path in zip(plots, paths, strict=True):
            with writing(path):
                plot(similarity, path)
        return paths

    @property
    def _path(self) -> Path:
        return self._folder / "options.json"
