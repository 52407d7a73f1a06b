"""Tensors that change hands between processes, with their gradients.

A batch is spread over the processes of a group: each has some of the samples, of all layers. For
distances each needs all samples, of some features. The gradients of all collectives here are those
of a loss that every process computes alike, times the number of processes: what
DistributedDataParallel and FSDP make the mean of then is its true gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Part",
    "Samples",
    "gather_rows",
    "gather_values",
    "redistribute",
    "sum_over_processes",
    "total_",
]

_ALIGNMENT = 8  # bytes: where the tensors in a message begin


class Samples(NamedTuple):
    """The processes, how many samples each has, and the bytes that this one has sent."""

    group: dist.ProcessGroup
    rank: int
    sizes: list[int]
    sent: Counter[str]

    @property
    def processes(self) -> int:
        return len(self.sizes)

    @property
    def n(self) -> int:
        """Samples in all."""
        return sum(self.sizes)


class Part(NamedTuple):
    """A range of a layer's second axis."""

    layer: int
    first: int
    last: int


def redistribute(
    layers: Sequence[Tensor], plan: Sequence[Sequence[Part]], samples: Samples
) -> tuple[Tensor, list[Tensor]]:
    """All samples of this process's parts of the layers.

    Parameters
    ----------
    layers : sequence of Tensor, each (n, D, ...)
        This process's samples.
    plan : sequence of sequence of Part
        What each process gets; a part may go to several.
    samples : Samples
        The processes.

    Returns
    -------
    Tensor, list of Tensor
        A zero that is in the graph also where this process gets nothing: backward is a collective,
        so every process must run it; and this process's parts, each (N, last - first, ...).
    """
    anchor, *parts = _Redistribute.apply(plan, samples, *layers)
    return anchor, parts


def sum_over_processes(anchor: Tensor, x: Tensor, samples: Samples) -> Tensor:
    """The sum of what each process has, in place; `anchor` is that of :func:`redistribute`."""
    result: Tensor = _Sum.apply(samples, anchor, x)
    return result


def gather_values(
    anchor: Tensor, values: Tensor, counts: Sequence[int], samples: Samples
) -> Tensor:
    """What every process computed, one after another.

    Parameters
    ----------
    anchor : Tensor
        That of :func:`redistribute`.
    values : Tensor, (counts[rank], ...)
        This process's.
    counts : sequence of int
        How many each has.
    """
    result: Tensor = _GatherValues.apply(counts, samples, anchor, values)
    return result


def gather_rows(x: Tensor, samples: Samples) -> Tensor:
    """All processes' samples of a layer: (N, ...) of (n, ...). Backward sends nothing."""
    if x.dtype == torch.bool:
        return gather_rows(x.byte(), samples).bool()
    result: Tensor = _GatherValues.apply(samples.sizes, samples, x.new_zeros(()), x)
    return result


def total_(tensors: Sequence[Tensor], samples: Samples) -> None:
    """Add up each tensor over the processes, in place, in one message of float64."""
    flat = torch.cat([t.flatten().double() for t in tensors])
    _all_reduce(flat, samples)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


class _Redistribute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Sequence[Sequence[Part]], samples: Samples, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        sent = [[layers[p.layer][:, p.first : p.last] for p in parts] for parts in plan]
        mine = plan[samples.rank]
        expected = [
            [_Block((n, *_shape(p, layers[p.layer].shape)), layers[p.layer].dtype) for p in mine]
            for n in samples.sizes
        ]
        received = _all_to_all(sent, expected, layers[0].device, samples)
        ctx.plan, ctx.samples = plan, samples
        ctx.layers = [torch.empty_like(x, device="meta") for x in layers]
        ctx.device = layers[0].device
        ctx.set_materialize_grads(False)
        parts = [_joined(blocks) for blocks in zip(*received, strict=True)]
        wanted = ctx.needs_input_grad[2:]
        # Those of a guide: nothing is to be computed for a gradient that goes nowhere.
        ctx.mark_non_differentiable(
            *(part for p, part in zip(mine, parts, strict=True) if not wanted[p.layer])
        )
        return torch.zeros((), device=ctx.device), *parts

    @staticmethod
    def backward(ctx: Any, _: Any, *grads: Tensor | None) -> Any:
        plan, samples, layers = ctx.plan, ctx.samples, ctx.layers
        wanted = ctx.needs_input_grad[2:]
        expected = [[p for p in parts if wanted[p.layer]] for parts in plan]
        blocks = []
        for part, grad in zip(plan[samples.rank], grads, strict=True):
            if wanted[part.layer]:
                if grad is None:
                    layer = layers[part.layer]
                    shape = (samples.n, *_shape(part, layer.shape))
                    grad = torch.zeros(shape, dtype=layer.dtype, device=ctx.device)
                blocks.append(grad.split(samples.sizes))
        sent = [[rows[r] for rows in blocks] for r in range(samples.processes)]
        n = samples.sizes[samples.rank]
        shapes = [
            [_Block((n, *_shape(p, layers[p.layer].shape)), layers[p.layer].dtype) for p in parts]
            for parts in expected
        ]
        received = _all_to_all(sent, shapes, ctx.device, samples)
        out = [
            torch.zeros(layer.shape, dtype=layer.dtype, device=ctx.device) if needed else None
            for layer, needed in zip(layers, wanted, strict=True)
        ]
        for parts, tensors in zip(expected, received, strict=True):
            for part, tensor in zip(parts, tensors, strict=True):
                gradient = out[part.layer]
                assert gradient is not None
                gradient[:, part.first : part.last] += tensor
        return (None, None, *out)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, samples: Samples, anchor: Tensor, x: Tensor) -> Tensor:
        ctx.processes = samples.processes
        ctx.mark_dirty(x)
        _all_reduce(x, samples)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, grad.new_zeros((), dtype=torch.float32), grad * ctx.processes


class _GatherValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, counts: Sequence[int], samples: Samples, anchor: Tensor, values: Tensor
    ) -> Tensor:
        ctx.counts, ctx.samples, ctx.anchor_dtype = counts, samples, anchor.dtype
        most = max(counts)
        padded = values.new_zeros((most, *values.shape[1:]))
        padded[: len(values)] = values
        out = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(out, padded, group=samples.group)
        samples.sent["all_gather"] += (samples.processes - 1) * padded.nbytes
        return _joined([x[:count] for x, count in zip(out, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        samples = ctx.samples
        first = sum(ctx.counts[: samples.rank])
        own = grad[first : first + ctx.counts[samples.rank]] * samples.processes
        return None, None, grad.new_zeros((), dtype=ctx.anchor_dtype), own


class _Block(NamedTuple):
    """A tensor in a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _joined(blocks: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    # Autocast to bfloat16 refuses to join float16, where only some processes may have it.
    with torch.autocast(blocks[0].device.type, enabled=False):
        return torch.cat(blocks)


def _shape(part: Part, layer: torch.Size) -> tuple[int, ...]:
    """Of a sample's part."""
    return part.last - part.first, *layer[2:]


def _all_to_all(
    sent: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[_Block]],
    device: torch.device,
    samples: Samples,
) -> list[list[Tensor]]:
    """Send some tensors to each process in one message, and get those of `expected` from each."""
    to = [[_Block(tuple(t.shape), t.dtype) for t in tensors] for tensors in sent]
    message, blocks = _message(to, device)
    for tensors, places in zip(sent, blocks, strict=True):
        for tensor, place in zip(tensors, places, strict=True):
            place.copy_(tensor)
    answer, received = _message(expected, device)
    coming, going = ([_length(blocks) for blocks in side] for side in (expected, to))
    dist.all_to_all_single(answer, message, coming, going, group=samples.group)
    samples.sent["all_to_all"] += message.numel() - going[samples.rank]
    return received


def _message(
    of_processes: Sequence[Sequence[_Block]], device: torch.device
) -> tuple[Tensor, list[list[Tensor]]]:
    """Memory for blocks to or from every process, and each block in it."""
    buffer = torch.empty(
        sum(_length(blocks) for blocks in of_processes), dtype=torch.uint8, device=device
    )
    places: list[list[Tensor]] = []
    at = 0
    for blocks in of_processes:
        places.append([])
        for block in blocks:
            flat = buffer[at : at + block.nbytes]
            places[-1].append(flat.view(block.dtype).view(block.shape))
            at += _padded(block.nbytes)
    return buffer, places


def _length(blocks: Sequence[_Block]) -> int:
    return sum(_padded(block.nbytes) for block in blocks)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _all_reduce(x: Tensor, samples: Samples) -> None:
    dist.all_reduce(x, group=samples.group)
    # What each process of a ring sends.
    samples.sent["all_reduce"] += 2 * (samples.processes - 1) * x.nbytes // samples.processes
