"""What processes tell each other before they compute together, so that none waits in vain."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Exchange", "exchange_of"]

# How long a message may take before the store is asked whether a process has failed.
_PATIENCE = timedelta(seconds=1)


class Exchange:
    """Messages on the host between the processes of a group, beside its tensors.

    They have a gloo group of their own: the device is not waited for, and a process that has
    failed shows as an error of the others. See :func:`exchange_of`.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        ranks = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        self.size = len(ranks)
        # Of a part of all processes only those of the part are here.
        self._control = dist.new_group(
            ranks, backend="gloo", use_local_synchronization=self.size < dist.get_world_size()
        )
        self._store = _store_of(self._control)
        self._calls = 0
        self._left = False  # whether the present step failed here

    def sizes(self, n: int, what: str) -> list[int]:
        """Every process's `n`, if all are about to do the same.

        Parameters
        ----------
        n : int
            Samples of this process.
        what : str
            What this process is about to compute.

        Raises
        ------
        RuntimeError
            If `what` differs between processes, or one has failed or ended; its error is told.
        """
        # A step that every process left, such as of a bad batch, is behind all of them.
        self._calls += 2 if self._left else 1
        self._left = False
        digest = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big")
        messages = self._gather(torch.tensor([self._calls, n, digest], device="cpu"))
        calls, sizes, digests = (list(column) for column in zip(*messages, strict=True))
        if len(set(calls)) > 1:
            raise RuntimeError(
                f"the processes compare different steps: process 0 makes its call {calls[0]}, "
                f"others {calls[1:]}; every process must take part in every guided step"
            )
        if len(set(digests)) > 1:
            self._raise_difference(what, digests)
        return [int(size) for size in sizes]

    def numbers(self, own: Sequence[int]) -> list[list[int]]:
        """Every process's, of equal length: after :meth:`sizes`."""
        return self._gather(torch.tensor(list(own), dtype=torch.int64, device="cpu"))

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process leaves the present step."""
        if self._left:
            return
        self._left = True
        text = f"process {self.rank} failed with {type(error).__name__}: {error}"
        # Without a store they see only that it has ended.
        with contextlib.suppress(Exception):
            if self._store is not None:
                self._store.set(self._failure_key(self._calls + 1), text)

    def _gather(self, message: Tensor) -> list[list[int]]:
        out = [torch.empty_like(message) for _ in range(self.size)]
        try:
            work = dist.all_gather(out, message, group=self._control, async_op=True)
        except RuntimeError as error:
            raise self._lost() from error
        while not self._arrived(work):
            pass
        return [received.tolist() for received in out]

    def _arrived(self, work: dist.Work) -> bool:
        """Wait for it a while. Raises if it cannot arrive any more."""
        try:
            return bool(work.wait(_PATIENCE))
        except RuntimeError as error:
            if work.is_completed() or self._failure():
                raise self._lost() from error
            return False

    def _lost(self) -> RuntimeError:
        ended = (
            "another process has ended or cannot be reached, so this guided step cannot be "
            "finished: see the error of that process"
        )
        return RuntimeError(self._failure() or ended)

    def _failure(self) -> str:
        """What a process said that left this step, or nothing."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None and self._store.check([self._failure_key(self._calls)]):
                return self._store.get(self._failure_key(self._calls)).decode()
        return ""

    def _failure_key(self, call: int) -> str:
        return f"failure/{call}"

    def _raise_difference(self, what: str, digests: list[int]) -> NoReturn:
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, what, group=self._control)
        other = next(r for r in range(self.size) if digests[r] != digests[0])
        raise RuntimeError(
            f"the processes compare different layers: process 0 has {everything[0]}, process "
            f"{other} has {everything[other]}"
        )


# One for each group: gloo cannot connect a second time to processes that closed a group of
# their own. Those of groups that are gone go with them.
_exchanges: WeakKeyDictionary[dist.ProcessGroup, Exchange] = WeakKeyDictionary()


def exchange_of(group: dist.ProcessGroup) -> Exchange:
    """The exchange of a group; every process asks for it, at the same time for the first time."""
    if group not in _exchanges:
        _exchanges[group] = Exchange(group)
    return _exchanges[group]


def _store_of(group: dist.ProcessGroup) -> dist.Store | None:
    """A store that the group's processes share, for keys of their own."""
    try:
        store = dist.distributed_c10d._get_default_store()
    except (AttributeError, ValueError):
        return None
    return dist.PrefixStore(f"pyguide/{group.group_name}", store)
