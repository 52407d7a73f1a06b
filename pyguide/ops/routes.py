"""Whether a set of pairs goes through n x n Gram matrices or d x d feature products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Part", "connected_parts", "multiply_adds", "split_by_route"]

_ROUTES = ("auto", "sample", "feature")

# Below this many multiply-adds (for each token, where tokens are compared one by one) either way is
# a matter of microseconds, and the sample route is a single native call. On a GPU the feature route
# is dozens of launches, which is worth it for more work only (an estimate: not tuned on one yet).
_SMALL = 1 << 22
_SMALL_ON_GPUS = 1 << 30


class Part(NamedTuple):
    """Pairs that are computed together."""

    in_feature_space: bool
    layers: list[int]  # which layers take part
    pairs: list[tuple[int, int]]  # indices into `layers`
    positions: list[int]  # where each pair stood in the list that was split


def connected_parts(count: int, pairs: list[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    """The layers of each connected set, and the positions of its pairs."""
    parent = list(range(count))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = find(i), find(j)
        if a != b:
            parent[max(a, b)] = min(a, b)
    sets: dict[int, tuple[list[int], list[int]]] = {}
    for i in range(count):
        sets.setdefault(find(i), ([], []))[0].append(i)
    for p, (i, _) in enumerate(pairs):
        sets[find(i)][1].append(p)
    return list(sets.values())


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
    if sample <= (_SMALL_ON_GPUS if layers[0].is_cuda else _SMALL):
        return False
    # Under torch.compile a comparison of symbolic sizes becomes a bool by being branched on.
    if sum(multiply_adds(layers, pairs, debiased, True, tokens)) < sample:  # noqa: SIM103
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
    in_feature_space = [False] * len(layers)
    for members, inside in connected_parts(len(layers), pairs):
        part = _part(False, members, inside, pairs)
        choice = _feature_space_is_less([layers[i] for i in members], part.pairs, debiased, tokens)
        for i in members:
            in_feature_space[i] = choice
    parts = []
    for choice in (False, True):
        members = [i for i in everything if in_feature_space[i] == choice]
        inside = [p for p, (i, _) in enumerate(pairs) if in_feature_space[i] == choice]
        if inside:
            parts.append(_part(choice, members, inside, pairs))
    return parts


def _part(
    in_feature_space: bool,
    members: list[int],
    positions: list[int],
    pairs: list[tuple[int, int]],
) -> Part:
    """The pairs at these positions, which are among ``members``, renumbered."""
    local = {i: k for k, i in enumerate(members)}
    renumbered = [(local[pairs[p][0]], local[pairs[p][1]]) for p in positions]
    return Part(in_feature_space, members, renumbered, positions)
