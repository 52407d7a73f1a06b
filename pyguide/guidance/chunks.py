"""Batches cut into chunks of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["chunk_slices", "rows"]


def chunk_slices(chunk_size: int, batch: Any) -> list[slice]:
    """The rows of each chunk of a batch: a tensor, or tuples, lists and dicts of tensors.

    Raises
    ------
    ValueError
        If its tensors have different first axes or none, or there is no sample.
    """
    shapes = [tuple(x.shape) for x in _tensors(batch)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or not all(sizes):
        raise ValueError(
            "the tensors of a batch must have the samples as their first axis, got the shapes "
            f"{', '.join(map(str, shapes)) or 'of no tensor'}"
        )
    ((n,),) = sizes
    if n == 0:
        raise ValueError("the batch has no samples")
    return [slice(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]


def rows(value: Any, chunk: slice) -> Any:
    """The chunk's part of a batch; what is no tensor in it is passed as it is."""
    if isinstance(value, Tensor):
        return value[chunk]
    if isinstance(value, Mapping):
        return {key: rows(part, chunk) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [rows(part, chunk) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
