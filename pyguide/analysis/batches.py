"""What a data loader gives, as what a network is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyguide.capture.versions import version_of

__all__ = ["Batch", "Mask", "batches_of", "on_device", "versions_of"]

# Which positions of a batch, as the loader gives it, are valid: (n, T), or None for all.
Mask = Callable[[Any], Tensor | None]


class Batch(NamedTuple):
    """What the networks are called with."""

    inputs: Any
    #: The number of samples.
    n: int
    #: (n, T) bool, True where a position is valid; None if all are.
    mask: Tensor | None


def batches_of(
    data: Iterable[Any], max_samples: int | None, mask: Mask | None = None
) -> Iterator[Batch]:
    """The batches, up to so many samples in all.

    Without `mask` that of a dict is its ``attention_mask``.
    """
    left = max_samples
    for given in data:
        batch = _batch(given, mask)
        if left is not None:
            if batch.n > left:
                batch = _first_samples(batch, left)
            left -= batch.n
        yield batch
        if left == 0:
            return


def on_device(inputs: Any, device: torch.device | None) -> Any:
    """The inputs with every tensor there; as they are if it is None."""
    if device is None:
        return inputs
    waits = device.type != "cuda"
    return _mapped(inputs, lambda x: x.to(device, non_blocking=not waits))


def versions_of(inputs: Any) -> list[int | None]:
    """The version of every tensor."""
    return [version_of(x) for x in _tensors(inputs)]


def _batch(given: Any, mask: Mask | None) -> Batch:
    inputs = _inputs(given)
    n = _sample_count(inputs, given)
    if mask is not None:
        found = mask(given)
    else:
        found = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return Batch(inputs, n, None if found is None else _padding_mask(found, n))


def _inputs(given: Any) -> Any:
    inputs = given
    if isinstance(given, (tuple, list)) and not isinstance(given, PackedSequence) and given:
        inputs = given[0]
    # BatchEncoding of Hugging Face is no dict.
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _padding_mask(mask: Any, n: int) -> Tensor | None:
    """The mask as bool, or None if it masks nothing. Reads it."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.size(0) == n:
        is_valid = mask.bool()
        if torch.equal(is_valid.to(mask.dtype), mask):  # Hugging Face's are integers
            return None if is_valid.all() else is_valid
    got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        f"the mask of a batch of {n} samples must be a tensor (n, T), bool or 0 and 1, True where "
        f"a position is valid, got {got}: give mask= a function of the batch that returns such a "
        "tensor, or one that returns None to count every position"
    )


def _sample_count(inputs: Any, given: Any) -> int:
    for x in _tensors(inputs):
        if x.dim() > 0:
            return x.size(0)
    raise TypeError(
        "a batch of data must be a tensor (n, ...), a tuple or list whose first item is the input, "
        f"or a dict of keyword arguments, got {type(given).__name__} without such a tensor"
    )


def _first_samples(batch: Batch, count: int) -> Batch:
    def cut(x: Tensor) -> Tensor:
        return x[:count] if x.dim() > 0 and x.size(0) == batch.n else x

    inputs = _mapped(batch.inputs, cut)
    return Batch(inputs, count, None if batch.mask is None else cut(batch.mask))


def _mapped(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function of every tensor in tuples, lists and dicts."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if type(inputs) in (tuple, list):
        return type(inputs)(_mapped(value, function) for value in inputs)
    if isinstance(inputs, Mapping):
        return {key: _mapped(value, function) for key, value in inputs.items()}
    return inputs


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif type(inputs) in (tuple, list):
        for value in inputs:
            yield from _tensors(value)
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _tensors(value)
