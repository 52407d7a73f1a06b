"""Distances of a batch that is spread over processes are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyguide.distances import RBFCKA, RSA, Distance, LinearCKA, get_distance
from pyguide.distributed import GlobalBatch

PAIRS = [(0, 0), (1, 0), (2, 1), (0, 1), (0, 0)]
# Unequal, and 1 for one of four.
SIZES = [9, 16, 1, 14]


class MeanDistance(Distance):
    """A user's distance: of the samples' mean feature, so it needs whole layers."""

    name = "mean"

    def __repr__(self):
        return "MeanDistance()"

    def __call__(self, xs, ys, *, pairs=None):
        pairs = list(zip(range(len(xs)), range(len(ys)), strict=True)) if pairs is None else pairs
        means = [(x.flatten(1).mean(1), y.flatten(1).mean(1)) for x, y in _chosen(xs, ys, pairs)]
        return torch.stack([((x - y) ** 2).mean().sqrt() for x, y in means])


def _chosen(xs, ys, pairs):
    return [(xs[i], ys[j]) for i, j in pairs]


def sizes(processes: int) -> list[int]:
    return SIZES[:processes] if processes > 1 else [20]


def layers(n: int, dtype: torch.dtype, offset: float, shapes) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    made = []
    for shape in shapes:
        d = torch.Size(shape).numel()
        mixed = shared @ torch.randn(4, d, generator=generator, dtype=torch.float64)
        x = mixed + torch.randn(n, d, generator=generator, dtype=torch.float64) + offset
        made.append(x.reshape(n, *shape).to(dtype))
    return made


SHAPES = [(6,), (5, 3), (2,), (30,), (2, 2, 2)]
# So few features that d x d products are less to send than N x N matrices.
NARROW = [(3,), (2,), (2,), (3,), (2,)]
TOKENS = [(3, 6), (3, 5), (3, 2), (3, 8), (3, 2, 2)]


def compare(
    rank: int,
    processes: int,
    distance: Any,
    *,
    dtype: torch.dtype = torch.float64,
    offset: float = 0.0,
    per_token: bool = False,
    shapes: Any = SHAPES,
    pairs: Any = PAIRS,
) -> dict[str, Any]:
    """This process's part: values, flags, gradients and what it sent."""
    own = sizes(processes)
    first = sum(own[:rank])
    made = [
        x[first : first + own[rank]].requires_grad_(i != 4)
        for i, x in enumerate(layers(sum(own), dtype, offset, shapes))
    ]
    return _compared(made, GlobalBatch(get_distance(distance)), per_token, pairs)


def alone(
    processes: int,
    distance: Any,
    *,
    dtype=torch.float64,
    offset=0.0,
    per_token=False,
    shapes=SHAPES,
    pairs=PAIRS,
) -> dict[str, Any]:
    made = [
        x.requires_grad_(i != 4)
        for i, x in enumerate(layers(sum(sizes(processes)), dtype, offset, shapes))
    ]
    return _compared(made, get_distance(distance), per_token, pairs)


def _compared(made: list[Tensor], distance: Distance, per_token: bool, pairs) -> dict[str, Any]:
    values, flags = distance.values_and_flags(made[:3], made[3:], pairs=pairs, per_token=per_token)
    weights = torch.arange(1.0, 1 + values.numel(), dtype=values.dtype).view_as(values)
    (weights * values).sum().backward()
    return {
        "values": values.detach(),
        "flags": None if flags is None else flags.clone(),
        "gradients": [x.grad for x in made],
        "sent": dict(getattr(distance, "sent", {})),
    }


def check(results: list[dict[str, Any]], expected: dict[str, Any], rtol: float = 1e-9) -> None:
    for result in results:
        torch.testing.assert_close(result["values"], expected["values"], rtol=rtol, atol=rtol)
        if expected["flags"] is not None:
            assert torch.equal(result["flags"], expected["flags"])
    for i, whole in enumerate(expected["gradients"]):
        parts = [result["gradients"][i] for result in results]
        if whole is None:
            assert all(part is None for part in parts)
            continue
        together = torch.cat(parts).double() / len(results)
        assert (together - whole.double()).norm() <= rtol * whole.norm() + 1e-14


@pytest.mark.parametrize(
    "distance",
    [
        "cka",
        "debiased_cka",
        "rbf_cka",
        RBFCKA(bandwidth=4.0, debiased=True),
        RSA("euclidean"),
        "rsa",
        "ridge",
        "procrustes",
        "bures",
        MeanDistance(),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_one_process(distance, world):
    results = world.run(compare, world.size, distance)
    check(results, alone(world.size, distance))


@pytest.mark.parametrize("distance", ["cka", "debiased_cka", "rbf_cka", "rsa", "ridge"])
def test_tokens_one_by_one(distance, world):
    results = world.run(_per_token, world.size, distance)
    check(results, alone(world.size, distance, per_token=True, shapes=TOKENS))


def _per_token(rank, processes, distance):
    return compare(rank, processes, distance, per_token=True, shapes=TOKENS)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", [SHAPES, NARROW], ids=["sample space", "feature space"])
def test_float32_keeps_its_digits(shapes, dtype, offset, debiased, worlds):
    distance = LinearCKA(debiased=debiased)
    results = worlds[3].run(_with_offset, 3, distance, dtype, offset, shapes)
    assert all(("all_to_all" in result["sent"]) == (shapes == SHAPES) for result in results)
    made = [
        x.double().requires_grad_(i != 4)
        for i, x in enumerate(layers(sum(sizes(3)), dtype, offset, shapes))
    ]
    expected = _compared(made, distance, False, PAIRS)
    for result in results:
        torch.testing.assert_close(result["values"].double(), expected["values"], rtol=0, atol=1e-5)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for i, whole in enumerate(expected["gradients"][:4]):
        together = torch.cat([r["gradients"][i] for r in results]).double() / 3
        assert (together - whole).norm() <= tolerance * whole.norm()


def _with_offset(rank, processes, distance, dtype, offset, shapes):
    return compare(rank, processes, distance, dtype=dtype, offset=offset, shapes=shapes)


def _under_autocast(rank):
    made = layers(20, torch.float16, 0.0, [(), (40,)])  # process 1 gets the first one's feature
    x, y = (x[10 * rank : 10 * (rank + 1)] for x in made)
    with torch.autocast("cpu", torch.bfloat16):
        return [GlobalBatch(get_distance(d))([x], [y]) for d in ("rbf_cka", "rsa")]


def test_autocast_changes_nothing(worlds):
    x, y = layers(20, torch.float16, 0.0, [(), (40,)])
    expected = [get_distance(d)([x], [y]) for d in ("rbf_cka", "rsa")]
    for result in worlds[2].run(_under_autocast):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def _some_require_grad(rank):
    """Without grad mode; the route with a gradient would be the other one."""
    x, y = (x[:12] for x in layers(24, torch.float32, 0.0, [(14,), (14,)]))
    with torch.no_grad():
        return GlobalBatch(LinearCKA())([x.requires_grad_(rank == 1)], [y])


def test_who_requires_grad_does_not_count_without_grad_mode(worlds):
    first, second = worlds[2].run(_some_require_grad)
    assert torch.equal(first, second)


class Noting(MeanDistance):
    """Which layers it would give a gradient."""

    def __call__(self, xs, ys, *, pairs=None):
        self.noted = [(x.requires_grad, y.requires_grad) for x, y in _chosen(xs, ys, pairs)]
        return super().__call__(xs, ys, pairs=pairs)


class NotingGrams(RBFCKA):
    def from_grams(self, grams, pairs):
        self.noted = [(grams[i].requires_grad, grams[j].requires_grad) for i, j in pairs]
        return super().from_grams(grams, pairs)


def _noted(rank, distance):
    x, y = layers(12, torch.float64, 0.0, [(3,), (4,)])
    pairs = [(0, 0), (0, 0)]
    GlobalBatch(distance)([x.requires_grad_()], [y], pairs=pairs).sum().backward()
    return distance.noted


@pytest.mark.parametrize("distance", [Noting(), NotingGrams()], ids=["pairs", "Gram matrices"])
def test_nothing_is_computed_for_layers_without_gradient(distance, worlds):
    for noted in worlds[2].run(_noted, distance):
        assert set(noted) == {(True, False)}
