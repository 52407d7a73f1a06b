"""What the ways to compare a batch that is spread over processes cost each of them.

Bytes are those that a process sends: in an all_to_all all but its own part, in an all_reduce what
a ring needs, ``2 (W - 1) / W`` of the buffer. They are counted alike in
:mod:`pyguide.distributed.redistribution` while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pyguide.ops.contract import result_dtype
from pyguide.ops.feature_space import products_of
from pyguide.ops.routes import connected_parts, multiply_adds

__all__ = [
    "ProcessCost",
    "chosen_cost",
    "feature_space_cost",
    "gather_cost",
    "routes",
    "sample_space_cost",
]


@dataclass(frozen=True)
class ProcessCost:
    """Of one training step for one of W processes, all with equally many samples."""

    #: Bytes that it sends, forward and backward.
    all_to_all: int
    all_reduce: int
    all_gather: int
    #: Multiply-adds of products, one in float64 counted twice, forward and backward.
    multiply_adds: int
    #: Bytes of activations and n x n or d x d matrices that it holds beside its own activations.
    held: int

    @property
    def sent(self) -> int:
        """All bytes that it sends."""
        return self.all_to_all + self.all_reduce + self.all_gather

    def __add__(self, other: ProcessCost) -> ProcessCost:
        return ProcessCost(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(ProcessCost))
        )


def sample_space_cost(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], processes: int
) -> ProcessCost:
    """By N x N Gram matrices: features are dealt out, and Gram matrices added up.

    Parameters
    ----------
    layers : sequence of Tensor, each (n, ...)
        A process's samples; shapes, dtypes and ``requires_grad`` count.
    pairs : sequence of (int, int)
        Indices into `layers`.
    processes : int
        W; the batch has N = W n samples.
    """
    samples = layers[0].size(0) * processes
    grams = len(layers) * samples**2 * result_dtype(layers).itemsize
    moved = sum(x.nbytes * (1 + x.requires_grad) for x in layers)
    shares = [_matrix(x, samples, -(-_features(x) // processes)) for x in layers]
    return ProcessCost(
        all_to_all=moved * (processes - 1) // processes,
        all_reduce=_ring(grams, processes),
        all_gather=0,
        multiply_adds=sum(multiply_adds(shares, list(pairs), False, False)),
        held=sum(x.nbytes for x in shares) + 2 * grams,
    )


def feature_space_cost(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], processes: int, debiased: bool
) -> ProcessCost:
    """By d x d products, which are added up: see :func:`sample_space_cost`."""
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    keys = products_of(len(layers), left, right)
    features = [_features(x) for x in layers]
    products = sum(features[i] * features[j] for i, j in keys)
    wanted = sum(d for d, x in zip(features, layers, strict=True) if x.requires_grad)
    # Two rounds of means, forward and in backward, and one of the gradients; float64.
    means = 4 * sum(features) + wanted if wanted else 2 * sum(features)
    rows = len(keys) * (2 if wanted else 1) if debiased else 0
    share = [_matrix(x, x.size(0), d) for x, d in zip(layers, features, strict=True)]
    return ProcessCost(
        all_to_all=0,
        all_reduce=_ring(8 * (products + means + rows), processes),
        all_gather=0,
        multiply_adds=sum(multiply_adds(share, list(pairs), debiased, True)),
        held=8 * products + sum(x.nbytes for x in share),
    )


def routes(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], processes: int, debiased: bool
) -> list[tuple[bool, list[int], list[int]]]:
    """By which way linear CKA of each connected set of layers sends less.

    Returns
    -------
    list of (bool, list of int, list of int)
        Whether in feature space, which layers, and which pairs: each way at most once.
    """
    found: dict[bool, tuple[list[int], list[int]]] = {}
    for members, positions in connected_parts(len(layers), list(pairs)):
        some, local = _part(layers, pairs, members, positions)
        by_samples = sample_space_cost(some, local, processes)
        by_features = feature_space_cost(some, local, processes, debiased)
        layers_so_far, pairs_so_far = found.setdefault(by_features.sent < by_samples.sent, ([], []))
        layers_so_far += members
        pairs_so_far += positions
    return [(route, *found[route]) for route in sorted(found)]


def chosen_cost(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], processes: int, debiased: bool
) -> ProcessCost:
    """By :func:`routes`: see :func:`sample_space_cost`."""
    total = ProcessCost(0, 0, 0, 0, 0)
    for in_feature_space, members, positions in routes(layers, pairs, processes, debiased):
        some, local = _part(layers, pairs, members, positions)
        if in_feature_space:
            total += feature_space_cost(some, local, processes, debiased)
        else:
            total += sample_space_cost(some, local, processes)
    return total


def gather_cost(
    layers: Sequence[Tensor], pairs: Sequence[tuple[int, int]], processes: int
) -> ProcessCost:
    """What it would be to bring all samples of all layers to every process, for comparison."""
    samples = layers[0].size(0) * processes
    everything = [_matrix(x, samples, _features(x)) for x in layers]
    return ProcessCost(
        all_to_all=0,
        all_reduce=0,
        all_gather=(processes - 1) * sum(x.nbytes for x in layers),
        multiply_adds=sum(multiply_adds(everything, list(pairs), False, False)),
        held=sum(x.nbytes for x in everything)
        + len(layers) * samples**2 * result_dtype(layers).itemsize,
    )


def _part(
    layers: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    members: list[int],
    positions: list[int],
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Some of the layers, and the pairs at these positions, renumbered."""
    local = [(members.index(pairs[p][0]), members.index(pairs[p][1])) for p in positions]
    return [layers[i] for i in members], local


def _features(x: Tensor) -> int:
    return x.numel() // x.size(0)


def _matrix(x: Tensor, samples: int, features: int) -> Tensor:
    return torch.empty(
        (samples, features), dtype=x.dtype, device="meta", requires_grad=x.requires_grad
    )


def _ring(nbytes: int, processes: int) -> int:
    return 2 * (processes - 1) * nbytes // processes
