"""Sums of a comparison in a file, from which an interrupted one goes on."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyguide.analysis.layer_grams import LayerGrams
from pyguide.analysis.streaming import StreamingCKA
from pyguide.errors import first_line
from pyguide.ops.hsic import CenteredGram
from pyguide.torch_files import DamagedFile, load_tensors, save_tensors

__all__ = ["Checkpoint"]

_FORMAT = 1

_SECONDS = 30.0

# The same batch of the same networks: HSIC differs by the rounding of another machine at most,
# relative to the layers' own.
_TOLERANCE = 1e-3


class Checkpoint:
    """Writes the sums now and then, and says which batches an earlier call counted.

    As a context manager it writes the sums when an exception, Ctrl-C for example, ends the
    comparison. At a regular end it removes the file, or writes all sums into it.

    Parameters
    ----------
    path : str, Path or None
        The file; None writes nothing.
    sums : StreamingCKA
        Gets the sums of the file, if there is one.
    keep : bool
        Whether the file stays at a regular end.

    Raises
    ------
    ValueError
        If the file is of another estimator, damaged, or something else.
    OSError
        If it cannot be read, or nothing can be written beside it.
    """

    def __init__(self, path: str | Path | None, sums: StreamingCKA, *, keep: bool = False) -> None:
        self._path = None if path is None else Path(path)
        self._sums = sums
        self._keep = keep
        self._sizes: list[int] = []
        self._seen = 0
        self._first: dict[str, Any] | None = None
        # The sums, and of how many batches they are, where the file does not have them.
        self._unwritten: tuple[dict[str, Any], int] | None = None
        self._written = time.monotonic()
        if self._path is None:
            return
        if self._path.exists():
            saved = _read(self._path)
            sums.load_state_dict(saved["sums"])
            self._sizes, self._first = saved["sizes"], saved["first"]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._path.parent):
            pass  # It can be written: better known now than in 30 seconds.

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self._rescue()
        elif self._keep:
            self._write()
        elif self._path is not None:
            self._path.unlink(missing_ok=True)

    def next(self, n: int) -> bool:
        """Whether the next batch, of n samples, was counted before.

        Raises
        ------
        ValueError
            If its size differs from then.
        """
        self._seen += 1
        if self._seen > len(self._sizes):
            self._sizes.append(n)
            return False
        if self._sizes[self._seen - 1] != n:
            raise self._other(
                f"batch {self._seen} has {n} samples, it had {self._sizes[self._seen - 1]}"
            )
        return True

    def check(
        self,
        rows: LayerGrams,
        columns: LayerGrams | None,
        grams: tuple[Sequence[CenteredGram], Sequence[CenteredGram] | None],
    ) -> None:
        """Compare the first counted batch with what it was, or keep it for a later call.

        Raises
        ------
        ValueError
            If the layers or their similarities differ.
        """
        if self._path is None:
            return
        batch = StreamingCKA(debiased=self._sums.debiased)
        batch.update_grams(*grams)
        sums = batch.state_dict()["sums"]
        now: dict[str, Any] = {
            "rows": list(rows.names),
            "columns": None if columns is None else list(columns.names),
            "values": batch.compute().cpu(),
            # One layer with itself has the value 1 in every network.
            "own": torch.cat([sums["first"], sums["second"]]).cpu(),
        }
        if self._first is None:
            self._first = now
            return
        for side in ("rows", "columns"):
            if now[side] != self._first[side]:
                raise self._other(f"the layers of its {side} were {self._first[side]}")
        if not (
            _close(now["values"], self._first["values"], atol=_TOLERANCE)
            and _close(now["own"], self._first["own"], rtol=_TOLERANCE)
        ):
            raise self._other("the first batch has other similarities")

    def counted(self) -> None:
        """Remember the sums with this batch; write them, if the last time is long ago."""
        # An interrupt may fall between any two steps, also of an update of the sums. What is
        # written is always of whole batches, because one assignment replaces all of it.
        self._unwritten = self._sums.state_dict(), self._seen
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def check_end(self) -> None:
        """Raise ValueError if an earlier call counted batches that did not come."""
        if self._seen < len(self._sizes):
            raise self._other(f"there were {self._seen} batches, it counted {len(self._sizes)}")

    def _write(self) -> None:
        if self._path is None or self._unwritten is None:
            return
        sums, batches = self._unwritten
        state = {
            "format": _FORMAT,
            "sums": sums,
            "sizes": self._sizes[:batches],
            "first": self._first,
        }
        save_tensors(self._path, state)
        self._unwritten = None
        self._written = time.monotonic()

    def _rescue(self) -> None:
        """Write; a failure must not hide the exception that ends the comparison."""
        try:
            self._write()
        except Exception as error:
            warnings.warn(
                f"{self._path}: what was counted last could not be written: {first_line(error)}",
                stacklevel=2,
            )

    def _other(self, difference: str) -> ValueError:
        return ValueError(
            f"{self._path} is of another comparison: {difference}. Go on with the same networks, "
            "layers and data in the same order, or remove the file"
        )


def _close(a: Tensor, b: Tensor, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb"):
        pass  # It is a file, and may be read: else this says so, and not that it is damaged.
    try:
        saved = load_tensors(path)
    except DamagedFile as error:
        raise ValueError(f"{error}: remove it to begin again") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(f"{path} is no checkpoint of compare_networks in format {_FORMAT}")
    return saved
