"""Showing how many batches are done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["Progress", "shown"]

_Batch = TypeVar("_Batch")

#: Whether to show a bar, or what to call with the number of batches done and their total,
#: None if it is not known.
Progress = bool | Callable[[int, int | None], None]


def shown(batches: Iterable[_Batch], total: int | None, progress: Progress) -> Iterator[_Batch]:
    """The batches, each reported when the next is asked for."""
    with contextlib.ExitStack() as stack:
        report = _bar(stack, total) if progress is True else progress
        for done, batch in enumerate(batches, start=1):
            yield batch
            if callable(report):
                report(done, total)


def _bar(stack: contextlib.ExitStack, total: int | None) -> Callable[[int, int | None], Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install 'pyguide[compare]'") from error
    bar = stack.enter_context(tqdm(total=total, unit="batch"))
    return lambda done, total: bar.update()
