"""Whether a set of pairs goes through n x n Gram matrices or d x d feature products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Part", "multiply_adds", "split_by_route"]

_ROUTES = ("auto", "sample", "feature")

# Below this many multiply-adds (for each token, where tokens are compared one by one) either way is
# a matter of microseconds, and the sample route is a single native call.
_SMALL = 1 << 22


class Part(NamedTuple):
    """Pairs that are computed together."""

    in_feature_space: bool
    layers: list[int]  # which layers take part
    pairs: list[tuple[int, int]]  # indices into `layers`
    positions: list[int]  # where each pair stood in the list that was split


def _connected_sets(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The representative of each layer's connected set."""
    parent = list(range(count))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = find(i), find(j)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(count)]


def multiply_adds(
    layers: list[Tensor],
    pairs: list[tuple[int, int]],
    debiased: bool,
    in_feature_space: bool,
    tokens: int = 1,
) -> tuple[int, int]:
    """Multiply-adds of forward and backward by a route, a token; one in float64 counts twice."""
    n = layers[0].size(0)
    features = [x.numel() // (n * tokens) for x in layers]
    wanted = [x.requires_grad for x in layers]
    # The debiased estimator multiplies features in float64.
    in_double = debiased and in_feature_space
    times = [2 if in_double or x.dtype == torch.float64 else 1 for x in layers]
    forward = backward = 0
    for d, needs_grad, t in zip(features, wanted, times, strict=True):
        forward += t * (n * d * d if in_feature_space else n * n * d // 2)
        backward += t * n * d * (d if in_feature_space else n) * needs_grad
    if in_feature_space:
        for i, j in {(min(pair), max(pair)) for pair in pairs}:
            if i != j:
                product = max(times[i], times[j]) * n * features[i] * features[j]
                forward += product
                backward += product * (wanted[i] + wanted[j])
    return forward, backward


def _feature_space_is_less(
    layers: list[Tensor], pairs: list[tuple[int, int]], debiased: bool, tokens: int
) -> bool:
    sample = sum(multiply_adds(layers, pairs, debiased, False, tokens))
    feature = sum(multiply_adds(layers, pairs, debiased, True, tokens))
    # Under torch.compile a comparison of symbolic sizes becomes a bool by being branched on.
    if sample > _SMALL and feature < sample:  # noqa: SIM103
        return True
    return False


def split_by_route(
    layers: list[Tensor],
    pairs: list[tuple[int, int]],
    route: str,
    debiased: bool,
    tokens: int = 1,
) -> list[Part]:
    """Split pairs into at most two parts, one a route; layers in connected pairs stay together.

    ``tokens`` is how many matrices each layer is.
    """
    if route not in _ROUTES:
        raise ValueError(f"route must be one of {_ROUTES}, got {route!r}")
    everything = list(range(len(layers)))
    if route != "auto":
        return [Part(route == "feature", everything, pairs, list(range(len(pairs))))]
    n = layers[0].size(0)
    if all(x.numel() >= n * n * tokens for x in layers):  # d >= n: the Gram matrix is the smaller
        return [Part(False, everything, pairs, list(range(len(pairs))))]
    roots = _connected_sets(len(layers), pairs)
    in_feature_space: dict[int, bool] = {}
    for root in set(roots):
        part = _part(False, [i for i in everything if roots[i] == root], pairs)
        in_feature_space[root] = _feature_space_is_less(
            [layers[i] for i in part.layers], part.pairs, debiased, tokens
        )
    parts = [
        _part(choice, [i for i in everything if in_feature_space[roots[i]] == choice], pairs)
        for choice in (False, True)
    ]
    return [part for part in parts if part.pairs]


def _part(in_feature_space: bool, members: list[int], pairs: list[tuple[int, int]]) -> Part:
    """The pairs among ``members``, renumbered. A pair is inside or outside as a whole."""
    local = {i: k for k, i in enumerate(members)}
    positions = [p for p, (i, _) in enumerate(pairs) if i in local]
    renumbered = [(local[pairs[p][0]], local[pairs[p][1]]) for p in positions]
    return Part(in_feature_space, members, renumbered, positions)
