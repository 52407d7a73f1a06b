"""guidance.plan(): what is compared, how and at what cost."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from networks import Layer, N, hooks, mlp
from torch import Tensor, nn

import pyguide
from pyguide.distances import Distance, LinearCKA
from pyguide.guidance import Guidance, Pair, gaussian_noise
from pyguide.guidance.comparison import Comparison
from pyguide.guidance.plan import make_plan


def test_sample_space_costs(x):
    """n² d / 2 a Gram, n² d a gradient; the target layer of both pairs counts once."""
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    first, second = Guidance(target, guide, pairs=[("0", "0"), ("0", "2")]).plan(x).rows
    assert (first.route, second.route) == ("sample", "sample")
    assert (first.target_shape, first.guide_shape) == ((N, 8), (N, 5))
    assert (first.forward, second.forward) == (N * N * (8 + 5) // 2, N * N * 4 // 2)
    assert (first.backward, second.backward) == (N * N * 8, 0)
    gram = N * N * 4 + 16  # with its trace and norm
    assert (first.gram_bytes, second.gram_bytes) == (2 * gram, gram)
    assert (first.activation_bytes, second.activation_bytes) == (N * (8 + 5) * 4, N * 4 * 4)


def test_feature_space_costs():
    """n d² a layer and n d₁ d₂ a pair, and again for each gradient; kept in float64."""
    n = 1024
    plan = Guidance(mlp(6, 16, 3), mlp(6, 8, 3)).plan(torch.randn(n, 6))
    (row,) = plan.rows
    assert row.route == "feature"
    assert row.forward == n * (16 * 16 + 8 * 8 + 16 * 8)
    assert row.backward == n * (16 * 16 + 16 * 8)
    assert row.gram_bytes == (16 * 16 + 8 * 8 + 16 * 8) * 8
    assert plan.totals == {
        "forward": row.forward,
        "backward": row.backward,
        "gram_bytes": row.gram_bytes,
        "activation_bytes": n * (16 + 8) * 4,
    }


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("n", "route"), [(24, "sample"), (700, "feature")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bytes_are_those_that_autograd_keeps(n, route, dtype, per_token, debiased):
    xs = [torch.randn(n, 3, d, dtype=dtype, requires_grad=True) for d in (6, 9)]
    ys = [torch.randn(n, 3, d) for d in (5, 7)]
    indices = [(0, 0), (0, 1), (1, 1)]
    names = dict.fromkeys("01")
    pairs = [Pair(str(i), str(j), per_token=per_token) for i, j in indices]
    comparison = Comparison(pairs, LinearCKA(debiased=debiased), names, names)
    plan = make_plan(comparison, *([t.to("meta") for t in side] for side in (xs, ys)))
    assert {row.route for row in plan.rows} == {route}

    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = pyguide.cka_pairs(xs, ys, pairs=indices, debiased=debiased, per_token=per_token)
    of_values = values.numel() * (8 + 1)  # float64 and whether degenerate
    total = sum(tensor.nbytes for tensor in kept.values())
    assert plan.totals["gram_bytes"] + plan.totals["activation_bytes"] == total - of_values


def test_the_routes_are_those_of_the_loss(monkeypatch):
    """A connected set of wide layers, one of narrow layers and a per-token pair."""
    x = torch.randn(512, 4, 6)
    target = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 300), nn.Linear(300, 3))
    guide = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 200), nn.Linear(200, 3))
    pairs = [("1", "1"), ("0", "0"), ("2", "0"), Pair("0", "0", per_token=True)]
    guidance = Guidance(target, guide, pairs=pairs)
    planned = [row.route for row in guidance.plan(x).rows]
    assert planned == ["sample", "feature", "feature", "feature"]

    ops = importlib.import_module("pyguide.ops.cka")  # pyguide.ops.cka is its function cka
    real = ops.split_by_route
    routes: list[str] = []

    def spy(*arguments):
        parts = real(*arguments)
        by_position = {p: part.in_feature_space for part in parts for p in part.positions}
        routes.extend("feature" if by_position[p] else "sample" for p in sorted(by_position))
        return parts

    monkeypatch.setattr(ops, "split_by_route", spy)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    assert routes == planned


def test_the_plan_of_what_was_seen(x):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    guidance = Guidance(target, guide)
    with pytest.raises(RuntimeError, match=r"plan\(\) needs an example"):
        guidance.plan()
    planned = guidance.plan(x)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    assert guidance.plan() == planned


class _Stateful(nn.Module):
    """BatchNorm, Dropout, a buffer of its own and draws."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.dropout, self.last = nn.Dropout(), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.last(self.dropout(self.norm(self.first(x + torch.rand(())))))


@pytest.mark.parametrize("pairs", ["even", "paper", [("*", "*")], [("first", "first")]])
def test_a_plan_leaves_no_trace(x, pairs):
    losses = []
    for plan in (False, True):
        target, guide = _Stateful(), _Stateful()
        target.norm.eval()
        transform = gaussian_noise(seed=3)
        guidance = Guidance(target, guide, pairs=pairs, guide_transform=transform)
        before = {
            name: value.clone() for m in (target, guide) for name, value in m.state_dict().items()
        }
        hooked, random = (hooks(target), hooks(guide)), torch.get_rng_state()
        if plan:
            resolved = guidance.pairs
            guidance.plan(x)
            with pytest.raises(RuntimeError):
                guidance.plan(torch.zeros(N, 5))
            assert guidance.pairs == resolved
        assert (hooks(target), hooks(guide)) == hooked
        assert torch.equal(torch.get_rng_state(), random)
        assert target.training and target.dropout.training and not target.norm.training
        after = {name: v for m in (target, guide) for name, v in m.state_dict().items()}
        assert all(torch.equal(before[name], value) for name, value in after.items())
        with guidance.capture():
            target(x)
        losses.append(guidance.loss(x).item())
    assert losses[0] == losses[1]


def test_the_guides_inputs(x):
    target, guide = mlp(6, 8, 3), mlp(4, 5, 3)
    assert Guidance(target, guide).plan(x, guide_inputs=x[:, :4]).rows[0].guide_shape == (N, 5)
    transformed = Guidance(target, guide, guide_transform=lambda x: x[:, :4])
    assert transformed.plan(x).rows[0].guide_shape == (N, 5)


def test_dtypes_are_those_of_the_example_and_autocast(x):
    guidance = Guidance(mlp(6, 8, 3), mlp(6, 5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (row,) = guidance.plan(x).rows
    assert row.target_dtype == row.guide_dtype == "bfloat16"
    assert row.activation_bytes == N * (8 + 5) * 2


def test_another_distance_has_no_known_cost(x):
    class Constant(Distance):
        name = "constant"

        def __call__(self, xs, ys, *, pairs=None, per_token=False):
            return torch.ones(len(pairs))

    plan = Guidance(mlp(6, 8, 3), mlp(6, 5, 3), distance=Constant()).plan(x)
    assert plan.rows[0].route is None
    assert plan.totals["forward"] is None
    assert plan.totals["activation_bytes"] == N * 13 * 4
    assert "-" in str(plan)


def test_table_and_dict(x):
    target = nn.Sequential(Layer(lambda x: x[:, None].expand(-1, 3, -1)), nn.Linear(6, 8))
    guide = nn.Sequential(Layer(lambda x: x[:, None].expand(-1, 3, -1)), nn.Linear(6, 8))
    pairs = [("1", "1"), Pair("1", "1", per_token=True)]
    plan = Guidance(target, guide, pairs=pairs, distance="debiased_cka").plan(x)
    # Three Gram matrices of 8 features cost what one of 24 does.
    assert plan.rows[1].forward == plan.rows[0].forward == N * N * 24
    assert plan.rows[1].backward == plan.rows[0].backward == N * N * 24
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    assert plan.to_dict()["rows"][1]["per_token"] is True
    heads, first, second, total, note = str(plan).splitlines()
    assert heads.split("  ")[0] == "target"
    for cell in ("(40, 3, 8)", "float32", "sample", "38.4 k"):
        assert cell in first
    assert "sample, per token" in second
    assert total.startswith("total")
    assert note.startswith("debiased_cka")
