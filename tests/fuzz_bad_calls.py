"""Calls of the native module with one bad argument, each of which must be refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from fuzz_matrices import Mismatch
from torch import Tensor

from pyguide import _native

REJECTED = (ValueError, TypeError, OverflowError, MemoryError)


def good_calls(rng: random.Random) -> tuple[dict[str, dict[str, Any]], list[Tensor]]:
    """Arguments of one good call of each function, and the tensors that they point into."""
    n, layers = 8, 2
    xs = [torch.randn(n, d) for d in (3, 5)]
    gradients = [torch.empty_like(x) for x in xs]
    grams, out = torch.randn(layers, n, n), torch.empty(layers, n, n)
    stats = torch.ones(layers, 2, dtype=torch.float64)
    values, grad = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    flags = torch.zeros(2, dtype=torch.bool)

    def views(tensors: list[Tensor]) -> list[tuple[int, ...]]:
        return [(t.data_ptr(), 1, n, t.size(1), t.size(1), 1, 1, 0) for t in tensors]

    run = {"dtype": 1, "n": n, "threads": rng.randint(1, 5), "instruction_set": ""}
    pairs = {"left": [0, 1], "right": [1, 1], "tokens": 1, "values": values.data_ptr()}
    stack = {"grams": grams.data_ptr(), "layers": layers, "stats": stats.data_ptr()}
    aligned = {**run, **stack, **pairs, "degenerate": flags.data_ptr()}
    calls = {
        "gram": {**run, **stack, "layers": views(xs), "centering": 1},
        "alignment": aligned,
        "coefficients": {
            **aligned,
            "grad": grad.data_ptr(),
            "wanted": [0, 1],
            "out": out.data_ptr(),
        },
        "symmetrize": {
            **run,
            "grads": grams.data_ptr(),
            "layers": layers,
            "center": True,
            "out": out.data_ptr(),
        },
        "apply": {
            **run,
            "coefficients": grams.data_ptr(),
            "layers": views(xs),
            "outs": views(gradients),
            "shifted": True,
        },
    }
    return calls, [*xs, *gradients, grams, out, stats, values, grad, flags]


HUGE = [2**62, 2**63 - 1, 2**63, 2**64, 10**30]
NOT_A_NUMBER = [None, "8", 2.5, [], object()]
BAD_NUMBERS: dict[str, list[Any]] = {
    "n": [-1, 0, -(2**63), *HUGE],
    "dtype": [-1, 2, 3, 4, *HUGE],
    "centering": [-1, 3, 2**31, *HUGE],
    "tokens": [0, -1, 3, 2**31, *HUGE],
    "threads": [0, -1, 4097, 2**31 - 1, 2**31, *HUGE],
    "instruction_set": ["sse9", "AVX2", "avx2 ", "\0", 3, None, b"\xff"],
    "center": ["yes", [], object()],
    "shifted": ["yes", [], object()],
}
BAD_POINTERS = [0, -1, -(2**63), *HUGE[2:]]
BAD_INDICES = [[0, 2], [-1, 0], [0, 2**62], [0, 2**64], [0, None], [0.5, 1], "01", None, 7]
BAD_LISTS = [[0], [0, 1, 1], []]  # left and right of different lengths


def bad_view(rng: random.Random, view: Sequence[int]) -> Any:
    wrong: dict[int, list[Any]] = {
        0: [0, view[0] + 1, view[0] + 2, 2**63 - 1, 2**64],
        1: [-1, 4, 2**40, 2**64],
        2: [-1, 0, 7, 9, *HUGE],
        3: [-1, 0, *HUGE],
        4: [-1, -(2**63), *HUGE],
        5: [-1, -(2**63), *HUGE],
        6: [-1, 0, 2, *HUGE],
        7: [-1, -(2**63), 2**63, 2**64],  # of one token: any other stride is good
    }
    if rng.random() < 0.2:
        return rng.choice([None, 3, "view", view[:7], (*view, 1), []])
    place = rng.randrange(8)
    changed: list[Any] = list(view)
    changed[place] = rng.choice([*wrong[place], *NOT_A_NUMBER])
    return tuple(changed)


def bad_views(rng: random.Random, name: str, good: list[Any]) -> Any:
    kinds = ["no list", "one view"] + ["count", "overlap"] * (name == "outs")
    kind = rng.choice(kinds)
    if kind == "no list":
        return rng.choice([None, 5, name, [], [None], [[]]])
    if kind == "count":
        return rng.choice([good[:1], [*good, good[0]], good[::-1]])
    views = list(good)
    if kind == "overlap":
        views[0] = (*views[0][:4], *rng.choice([(0, 1), (3, 0), (2, 1), (0, 0)]), 1, 0)
    else:
        place = rng.randrange(len(views))
        views[place] = bad_view(rng, views[place])
    return views


def bad_value(rng: random.Random, name: str, good: Any) -> Any:
    if name in ("layers", "outs") and isinstance(good, list):
        return bad_views(rng, name, good)
    if name in BAD_NUMBERS:
        other_types = [] if isinstance(good, (bool, str)) else NOT_A_NUMBER
        return rng.choice([*BAD_NUMBERS[name], *other_types])
    if name == "layers":
        return rng.choice([0, -1, *HUGE, *NOT_A_NUMBER])
    if name in ("left", "right"):
        return rng.choice([*BAD_INDICES, *BAD_LISTS])
    if name == "wanted":
        return rng.choice(BAD_INDICES)
    misaligned = [] if name == "degenerate" else [1, 2**63 - 1, good + 1]  # flags are bytes
    return rng.choice([*BAD_POINTERS, *misaligned, *NOT_A_NUMBER])


def call_badly(rng: random.Random) -> None:
    calls, owners = good_calls(rng)
    function, good = rng.choice(list(calls.items()))
    call = getattr(_native, function)
    call(**good)
    name = rng.choice(list(good))
    bad = {**good, name: bad_value(rng, name, good[name])}
    if rng.random() < 0.05 and name != "instruction_set":
        del bad[name]
    try:
        call(**bad)
    except REJECTED:
        return
    finally:
        del owners  # the pointers were good until here
    raise Mismatch(f"{function} accepted {name} in {bad}")
