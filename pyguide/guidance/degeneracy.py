"""Warnings about degenerate layers that do not wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["DegeneracyWarner"]


class DegeneracyWarner:
    """Warns once for every pair that had a degenerate layer.

    CPU flags are read at once. CUDA flags are copied to pinned memory and read by the
    first later call that finds the copy done; flags in between are not looked at, since a
    layer that is degenerate in one step only is no news. Flags on other devices cannot be
    read without waiting, so they are not.
    """

    def __init__(self) -> None:
        self._warned: set[tuple[str, str]] = set()
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._pending: tuple[Tensor, Sequence[tuple[str, str]]] | None = None

    def update(self, flags: Tensor, pairs: Sequence[tuple[str, str]]) -> None:
        """Look at the (P,) flags of `pairs`."""
        if torch.compiler.is_compiling():
            # A graph cannot depend on values: see check_pending.
            self._pending = flags, pairs
        elif flags.device.type == "cpu":
            self._warn(flags, pairs)
        elif flags.is_cuda and not torch.cuda.is_current_stream_capturing():
            self._update_cuda(flags, pairs)

    def check_pending(self) -> None:
        """Look at the flags that compiled code left."""
        if self._pending is not None:
            flags, pairs = self._pending
            self._pending = None
            self.update(flags, pairs)

    def _update_cuda(self, flags: Tensor, pairs: Sequence[tuple[str, str]]) -> None:
        if self._host is None or self._host.shape != flags.shape:
            self._host = torch.empty(flags.shape, dtype=torch.bool, device="cpu", pin_memory=True)
            self._copied = None
        if self._copied is not None:
            if not self._copied.query():
                return
            self._warn(self._host, pairs)
        with torch.cuda.device(flags.device):
            self._host.copy_(flags, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _warn(self, flags: Tensor, pairs: Sequence[tuple[str, str]]) -> None:
        if not flags.any():
            return
        for pair, degenerate in zip(pairs, flags.tolist(), strict=True):
            if degenerate and pair not in self._warned:
                self._warned.add(pair)
                warnings.warn(
                    f"target layer {pair[0]!r} or guide layer {pair[1]!r} is degenerate: its "
                    "activations do not differ between samples (dead units, a constant "
                    "input); their distance is constant and has no gradient",
                    stacklevel=4,
                )
