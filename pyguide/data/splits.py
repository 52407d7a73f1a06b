"""Training, validation and test data as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["WHOLE", "Batch", "Share", "Split", "Splits", "TensorSplit"]


class Share(NamedTuple):
    """Which samples of a batch one of several processes has; by default all."""

    rank: int = 0
    processes: int = 1

    def of(self, batch_size: int) -> slice:
        """Their positions in the batch, whose size is a multiple of the number of processes."""
        own = batch_size // self.processes
        return slice(self.rank * own, (self.rank + 1) * own)


#: The share of one process alone.
WHOLE = Share()


class Batch(NamedTuple):
    """A batch to train on.

    Attributes
    ----------
    x, y : Any
        Inputs and labels.
    ids : Tensor or None
        (n,) int64 on the CPU, the samples' positions in the order of :meth:`Split.batches`; None
        where a sample is another one in every epoch.
    """

    x: Any
    y: Any
    ids: Tensor | None = None


class Split(Protocol):
    """A part of the data."""

    def __len__(self) -> int:
        """Number of samples."""

    def shuffled(
        self, batch_size: int, generator: torch.Generator, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Whole batches in a new order, drawn from the generator alone.

        With a `share`, that of each.

        CKA depends on the batch size, so there is no smaller last batch.
        """

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """All samples (inputs, labels) in a fixed order, for evaluation."""


@dataclass(frozen=True)
class Splits:
    """What an experiment trains on, chooses by, and reports.

    Attributes
    ----------
    train, val, test : Split
        The test split steers nothing; a sweep never scores it.
    classes : int
        Number of labels.
    """

    train: Split
    val: Split
    test: Split
    classes: int


@dataclass(frozen=True)
class TensorSplit:
    """Inputs (n, ...) and labels (n, ...) in memory.

    Parameters
    ----------
    x, y : Tensor
    evaluation_batch : int
        Samples of a batch of :meth:`batches`.

    Examples
    --------
    >>> import torch
    >>> from pyguide.data.splits import TensorSplit
    >>> split = TensorSplit(torch.randn(10, 3), torch.arange(10))
    >>> [len(batch.y) for batch in split.shuffled(4, torch.Generator())]
    [4, 4]
    """

    x: Tensor
    y: Tensor
    evaluation_batch: int = 1000

    def __len__(self) -> int:
        return len(self.y)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, share: Share = WHOLE
    ) -> Iterator[Batch]:
        # On the CPU on every device, so that the order does not depend on it.
        order = torch.randperm(len(self), generator=generator)
        there = order.to(self.y.device)
        for start in range(0, len(self) - batch_size + 1, batch_size):
            own = share.of(batch_size)
            ids, batch = (o[start : start + batch_size][own] for o in (order, there))
            yield Batch(self.x[batch], self.y[batch], ids)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), self.evaluation_batch):
            stop = start + self.evaluation_batch
            yield self.x[start:stop], self.y[start:stop]
