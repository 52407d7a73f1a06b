"""Sums of a comparison in a file, from which an interrupted one goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyguide.analysis.layer_grams import LayerGrams
from pyguide.analysis.streaming import StreamingCKA
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

    Parameters
    ----------
    path : str, Path or None
        The file; None writes nothing.
    sums : StreamingCKA
        Gets the sums of the file, if there is one.

    Raises
    ------
    ValueError
        If the file is of another estimator, damaged, or something else.
    """

    def __init__(self, path: str | Path | None, sums: StreamingCKA) -> None:
        self._path = None if path is None else Path(path)
        self._sums = sums
        self._sizes: list[int] = []
        self._seen = 0
        self._first: dict[str, Any] | None = None
        self._written = time.monotonic()
        if self._path is not None and self._path.exists():
            saved = _read(self._path)
            sums.load_state_dict(saved["sums"])
            self._sizes, self._first = saved["sizes"], saved["first"]

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

    def write(self) -> None:
        """Write the sums, if the last time is long ago."""
        if self._path is not None and time.monotonic() - self._written >= _SECONDS:
            state = {
                "format": _FORMAT,
                "sums": self._sums.state_dict(),
                "sizes": self._sizes,
                "first": self._first,
            }
            save_tensors(self._path, state)
            self._written = time.monotonic()

    def close(self) -> None:
        """Remove the file.

        Raises
        ------
        ValueError
            If an earlier call counted batches that did not come.
        """
        if self._seen < len(self._sizes):
            raise self._other(f"there were {self._seen} batches, it counted {len(self._sizes)}")
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _other(self, difference: str) -> ValueError:
        return ValueError(
            f"{self._path} is of another comparison: {difference}. Go on with the same networks, "
            "layers and data in the same order, or remove the file"
        )


def _close(a: Tensor, b: Tensor, *, rtol: float = 0.0, atol: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = load_tensors(path)
    except DamagedFile as error:
        raise ValueError(f"{error}: remove it to begin again") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(f"{path} is no checkpoint of compare_networks in format {_FORMAT}")
    return saved
