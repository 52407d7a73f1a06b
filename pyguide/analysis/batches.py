"""What a data loader gives, as what a network is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["inputs_of", "on_device", "version_of", "versions_of"]


def inputs_of(data: Iterable[Any], max_samples: int | None) -> Iterator[tuple[Any, int]]:
    """The inputs of each batch and its number of samples, up to so many samples in all."""
    left = max_samples
    for batch in data:
        inputs = _inputs(batch)
        n = _sample_count(inputs, batch)
        if left is not None:
            if n > left:
                inputs, n = _first_samples(inputs, n, left), left
            left -= n
        yield inputs, n
        if left == 0:
            return


def on_device(inputs: Any, device: torch.device | None) -> Any:
    """The inputs with every tensor there; as they are if it is None."""
    if device is None:
        return inputs
    waits = device.type != "cuda"
    return _mapped(inputs, lambda x: x.to(device, non_blocking=not waits))


def version_of(x: Tensor) -> int | None:
    """How often x was changed in place; None for inference tensors, which do not count it."""
    return None if x.is_inference() else x._version


def versions_of(inputs: Any) -> list[int | None]:
    """The version of every tensor."""
    return [version_of(x) for x in _tensors(inputs)]


def _inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping):  # BatchEncoding of Hugging Face is no dict
        return dict(batch)
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence) and batch:
        return batch[0]
    return batch


def _sample_count(inputs: Any, batch: Any) -> int:
    for x in _tensors(inputs):
        if x.dim() > 0:
            return x.size(0)
    raise TypeError(
        "a batch of data must be a tensor (n, ...), a tuple or list whose first item is the input, "
        f"or a dict of keyword arguments, got {type(batch).__name__} without such a tensor"
    )


def _first_samples(inputs: Any, n: int, count: int) -> Any:
    return _mapped(inputs, lambda x: x[:count] if x.dim() > 0 and x.size(0) == n else x)


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
