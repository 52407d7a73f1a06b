"""Which tensor stands for what a layer returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from pyguide.capture.paths import unwrapped

__all__ = ["activations", "time_first_layers"]

# What the outputs of Hugging Face models call the last layer's activations.
_NAMES = ("last_hidden_state", "logits")

_TRANSFORMERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def activations(output: Any, time_first: bool) -> tuple[Tensor | None, Tensor | None]:
    """The tensor that stands for a layer's output, batch axis first, and its padding mask.

    A tuple or list stands for its first item; a dict or dataclass (Hugging Face's ModelOutput
    is both) for its "last_hidden_state", its "logits" or its only tensor. A PackedSequence, or
    a nested tensor such as nn.TransformerEncoder makes of padded input in eval mode, is padded
    to (n, T, ...) and has a mask: (n, T) bool, True where it is valid. The tensor is None where
    this finds none.

    Parameters
    ----------
    output : object
        What the layer returned.
    time_first : bool
        Whether a tensor of three axes is (T, n, d).
    """
    found = _representative(output)
    if isinstance(found, PackedSequence):
        padded, lengths = pad_packed_sequence(found, batch_first=True)
        return padded, _mask(padded, lengths)
    if not isinstance(found, Tensor):
        return None, None
    if found.is_nested:
        sizes = [sequence.size(0) for sequence in found.unbind()]
        padded = found.to_padded_tensor(0.0)
        return padded, _mask(padded, torch.tensor(sizes, device="cpu"))
    return (found.transpose(0, 1) if time_first and found.dim() == 3 else found), None


def _mask(padded: Tensor, lengths: Tensor) -> Tensor:
    """(n, T) bool from lengths that are on the CPU."""
    positions = torch.arange(padded.size(1), device=lengths.device)
    return (positions < lengths[:, None]).to(padded.device)


def _representative(output: Any) -> Any:
    if isinstance(output, (Tensor, PackedSequence)):
        return output
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    if isinstance(output, Mapping):
        fields = dict(output)
    elif dataclasses.is_dataclass(output):
        fields = vars(output)
    else:
        return None
    for name in _NAMES:
        if isinstance(fields.get(name), Tensor):
            return fields[name]
    tensors = [value for value in fields.values() if isinstance(value, (Tensor, PackedSequence))]
    return tensors[0] if len(tensors) == 1 else None


def time_first_layers(model: nn.Module) -> set[nn.Module]:
    """Those of torch's layers in the model that put time before the batch.

    Also what is inside a Transformer: its Linear layers have no such option.
    """
    found: set[nn.Module] = set()
    for module in map(unwrapped, model.modules()):
        if isinstance(module, _TRANSFORMERS) and not _attention_is_batch_first(module):
            found.update(map(unwrapped, module.modules()))
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and not module.batch_first:
            found.add(module)
    return found


def _attention_is_batch_first(transformer: nn.Module) -> bool:
    attention = next(
        (m for m in transformer.modules() if isinstance(m, nn.MultiheadAttention)), None
    )
    return attention is None or attention.batch_first
