"""What distances say that they cost, beside what torch counts and autograd keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyguide import Guidance, reference
from pyguide.distances import (
    RBFCKA,
    RSA,
    Bures,
    Distance,
    LinearCKA,
    Procrustes,
    Ridge,
    get_distance,
)

PAIRS = [(0, 0), (0, 1), (1, 1)]
EVERY = [
    LinearCKA(),
    LinearCKA(debiased=True),
    RBFCKA(),
    RBFCKA(bandwidth=3.0, debiased=True),
    RSA(),
    RSA("euclidean", diagonal=True),
    Ridge(),
    Procrustes(),
    Procrustes(normalized=False),
    Bures(),
]
every_distance = pytest.mark.parametrize("distance", EVERY, ids=repr)


def _layers(
    n: int, of_xs: list[int], of_ys: list[int], dtype: torch.dtype = torch.float32, tokens: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Target layers, which require grad, and guide layers."""
    shape = (n, tokens) if tokens else (n,)
    xs = [torch.randn(*shape, d, dtype=dtype, requires_grad=True) for d in of_xs]
    return xs, [torch.randn(*shape, d, dtype=dtype) for d in of_ys]


def _total(distance: Distance, xs, ys, pairs=PAIRS, per_token=False) -> tuple[int, int, int]:
    """Forward, backward and bytes, of layers on the meta device."""
    on_meta = ([x.to("meta") for x in side] for side in (xs, ys))
    costs = distance.costs(*on_meta, pairs=pairs, per_token=per_token)
    assert len(costs) == len(pairs)
    columns = [(c.forward, c.backward, c.gram_bytes) for c in costs]
    return tuple(map(sum, zip(*columns, strict=True)))


def _flops(distance: Distance, xs, ys) -> tuple[int, int]:
    """What torch counts of matrix products forward and backward."""
    with FlopCounterMode(display=False) as forward:
        values = distance(xs, ys, pairs=PAIRS)
    with FlopCounterMode(display=False) as backward:
        values.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def _kept(distance: Distance, xs, ys, per_token: bool) -> int:
    """Bytes of the memory that the graph holds, without the layers themselves."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distance.values_and_flags(xs, ys, pairs=PAIRS, per_token=per_token)
    for x in (*xs, *ys):
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@every_distance
@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", [([300, 200], [250, 400]), ([300, 16], [24, 400])])
def test_the_bytes_are_those_that_autograd_keeps(distance, tokens, dtype, widths) -> None:
    layers = _layers(96, *widths, dtype, tokens)
    planned = _total(distance, *layers, per_token=tokens > 0)[2]
    # Beside matrices a few numbers a sample or pair are kept.
    assert planned == pytest.approx(_kept(distance, *layers, tokens > 0), rel=0.03)


def test_the_bytes_of_projected_layers() -> None:
    distance = Ridge(projection=0.9)
    layers = _layers(64, [3000, 30], [2000, 20])
    planned = _total(distance, *layers)[2]
    assert planned == pytest.approx(_kept(distance, *layers, False), rel=0.03)


# Operations an entry: of the function of D forward and backward.
FUNCTIONS = {
    "rbf_cka": (3, 4),
    "rbf_cka(bandwidth=3)": (2, 4),
    "rsa": (10, 10),
    "rsa(euclidean)": (1, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "distance", [RBFCKA(), RBFCKA(bandwidth=3.0), RSA(), RSA("euclidean")], ids=repr
)
def test_rbf_cka_and_rsa_cost_grams_and_entries(distance, dtype, monkeypatch) -> None:
    """A quarter of the reference's products: triangles forward, one product a layer backward."""
    monkeypatch.setattr("pyguide.ops.pairwise.has_native_backend", lambda device: False)
    n = 32
    xs, ys = _layers(n, [100, 70], [40, 60], dtype)
    in_double = 2 if dtype == torch.float64 else 1
    forward, backward, _ = _total(distance, xs, ys)
    counted = _flops(distance, xs, ys)
    there, back = FUNCTIONS[distance.name]
    # Four layers' squared distances, function and centring, three pairs' inner products; two
    # layers' squared distances, derivative and its product with A; A has a term of itself and
    # one of the other layer for each pair. All in float64.
    entries = 2 * n * n * (4 * (2 + there + 4) + 3)
    assert forward == in_double * counted[0] // 4 + entries
    assert backward == in_double * counted[1] // 4 + 2 * n * n * (2 * (2 + back + 2) + 3 * 2)


def _reference_grams(layers: list[Tensor]) -> list[Tensor]:
    return [reference.gram([x.double()])[0] for x in layers]


@pytest.mark.parametrize("distance", [Procrustes(), Procrustes(normalized=False), Bures()])
@pytest.mark.parametrize("widths", [([50, 70], [60, 90]), ([50, 7], [12, 90]), ([5, 7], [9, 4])])
def test_procrustes_costs_products_and_decompositions(distance, widths, monkeypatch) -> None:
    monkeypatch.setattr("pyguide.ops.procrustes.double_grams", _reference_grams)
    n = 40
    xs, ys = _layers(n, *widths)
    forward, backward, _ = _total(distance, xs, ys)
    counted = _flops(distance, xs, ys)
    of_xs, of_ys = widths
    wide = [d for d in (*of_xs, *of_ys) if d > n]
    ranks = [(min(of_xs[i], n), min(of_ys[j], n)) for i, j in PAIRS]
    decompositions = 9 * n**3 * len(wide)
    for k, m in map(sorted, ranks):
        decompositions += min(14 * m * k * k + 8 * k**3, 6 * m * k * k + 20 * k**3)
    # The reference multiplies whole Gram matrices, and twice in their backward pass.
    assert forward == counted[0] - n * n * sum(wide) + decompositions
    assert backward == counted[1] - 2 * n * n * sum(d for d in of_xs if d > n)


def test_ridge_costs_products_and_solves(monkeypatch) -> None:
    monkeypatch.setattr("pyguide.ops.ridge.double_grams", _reference_grams)
    n, m, scored = 41, 20, 21
    of_xs, of_ys = [50, 8], [60, 10]
    xs, ys = _layers(n, of_xs, of_ys)
    distance = Ridge(projection=None)
    forward, backward, _ = _total(distance, xs, ys)
    counted = _flops(distance, xs, ys)
    # For each predictor a factor of m^3 / 3 operations, and m^2 for each of two solves of a
    # column; backward the same solves and two of m x m.
    solves = 2 * m * m * scored
    assert forward == counted[0] - n * n * sum(of_xs + of_ys) + 2 * (m**3 // 3 + solves)
    assert backward == counted[1] - 2 * n * n * sum(of_xs) + 2 * (solves + 2 * m**3)


def test_ridge_counts_the_projection() -> None:
    """Each of k projected features sums sqrt(d) of a layer's; the Gram matrix is then of k."""
    n, d, eps = 64, 10_000, 0.9
    k = math.ceil(4 * math.log(n) / (eps**2 / 2 - eps**3 / 3))
    xs, ys = _layers(n, [d], [40])
    projected = _total(Ridge(projection=eps), xs, ys, [(0, 0)])
    narrow = _total(Ridge(projection=eps), [xs[0][:, :k].detach().requires_grad_()], ys, [(0, 0)])
    assert projected[0] - narrow[0] == projected[1] - narrow[1] == 2 * n * k * 100


@every_distance
def test_tokens_cost_what_as_many_layers_do(distance) -> None:
    xs, ys = _layers(48, [60, 9], [20, 70], tokens=5)
    one = _total(distance, [x[:, 0] for x in xs], [y[:, 0] for y in ys])
    assert _total(distance, xs, ys, per_token=True) == tuple(5 * cost for cost in one)


@every_distance
def test_a_layer_of_several_pairs_is_counted_in_the_first(distance) -> None:
    xs, ys = _layers(48, [60, 9], [20, 70])
    first, again, *_ = distance.costs(xs, ys, pairs=[(0, 0), (0, 0), (1, 1)])
    assert again.forward < first.forward
    alone = _total(distance, xs, ys, [(0, 0)])
    assert (first.forward, first.backward, first.gram_bytes) == alone
    assert distance.costs(xs, ys, pairs=[]) == []


@every_distance
def test_without_gradient_there_is_no_backward(distance) -> None:
    xs, ys = _layers(48, [60], [20])
    (cost,) = distance.costs([x.detach() for x in xs], ys)
    assert cost.backward == 0
    assert 0 < cost.forward <= distance.costs(xs, ys)[0].forward


@pytest.mark.parametrize("name", ["cka", "rbf_cka", "rsa", "ridge", "procrustes", "bures"])
def test_plans_have_the_cost_of_every_named_distance(name) -> None:
    target, guide = (
        torch.nn.Sequential(torch.nn.Linear(6, d), torch.nn.Linear(d, 3)) for d in (80, 90)
    )
    guidance = Guidance(target, guide, pairs=[("0", "0")], distance=name)
    x = torch.randn(64, 6)
    (row,) = guidance.plan(x).rows
    layers = torch.empty(64, 80, requires_grad=True), torch.empty(64, 90)
    (cost,) = get_distance(name).costs([layers[0]], [layers[1]])
    assert (row.route, row.forward, row.backward) == ("sample", cost.forward, cost.backward)
    assert row.gram_bytes == cost.gram_bytes > 0
    assert "-" not in str(guidance.plan(x)).splitlines()[1]
