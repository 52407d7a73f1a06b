"""cka, cka_pairs, cka_matrix and CKALoss: values and contracts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyguide
from pyguide import _native, reference
from pyguide.ops import cka_pairs_and_flags

BOTH = pytest.mark.parametrize("debiased", [False, True])
ROUTES = pytest.mark.parametrize("route", ["sample", "feature"])


@ROUTES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_values(instruction_set, route, dtype) -> None:
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = x + rng.randn(100, 10)
    x, y = torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
    biased, _ = cka_pairs_and_flags([x], [y], route=route)
    debiased, _ = cka_pairs_and_flags([x], [y], debiased=True, route=route)
    assert biased.item() == pytest.approx(0.55761, abs=5e-6)
    assert debiased.item() == pytest.approx(0.51346, abs=5e-6)


@BOTH
@ROUTES
@pytest.mark.parametrize("n", [4, 5, 24, 65, 300, 600])
def test_against_the_oracle(related_layers, n, debiased, route) -> None:
    layers = related_layers(n, [1, 30, 200, 700])
    pairs = [(0, 1), (1, 2), (2, 3), (3, 3), (3, 0)]
    expected = reference.cka_pairs(layers, layers, pairs=pairs, debiased=debiased)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        xs = [x.to(dtype) for x in layers]
        actual, flags = cka_pairs_and_flags(xs, xs, pairs=pairs, debiased=debiased, route=route)
        exact = reference.cka_pairs(
            [x.double() for x in xs], [x.double() for x in xs], pairs=pairs, debiased=debiased
        )
        assert actual.dtype == dtype and not flags.any()
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)


def test_matrix_is_its_pairs(backend) -> None:
    xs = [torch.randn(20, d) for d in (3, 30, 8)]
    ys = [torch.randn(20, d) for d in (5, 40)]
    matrix = pyguide.cka_matrix(xs, ys, debiased=True)
    assert matrix.shape == (3, 2)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert matrix[i, j].item() == pytest.approx(
                pyguide.cka(x, y, debiased=True).item(), abs=1e-6
            )
    square = pyguide.cka_matrix(xs)
    assert torch.equal(square, square.T)
    torch.testing.assert_close(square.diag(), torch.ones(3))


@BOTH
def test_invariances(backend, debiased: bool) -> None:
    x, y = torch.randn(40, 12).double(), torch.randn(40, 9).double()
    value = pyguide.cka(x, y, debiased=debiased)
    orthogonal, _ = torch.linalg.qr(torch.randn(12, 12).double())
    order = torch.randperm(40)
    same = [
        pyguide.cka(x @ orthogonal, y, debiased=debiased),
        pyguide.cka(1e3 * x, -1e-3 * y, debiased=debiased),
        pyguide.cka(x + torch.randn(12), y - 5, debiased=debiased),
        pyguide.cka(x[order], y[order], debiased=debiased),
        pyguide.cka(y, x, debiased=debiased),
    ]
    torch.testing.assert_close(torch.stack(same), value.expand(5), rtol=1e-10, atol=1e-12)
    general = pyguide.cka(x @ torch.diag(torch.arange(12.0).double()), y, debiased=debiased)
    assert abs(general - value) > 1e-3


def test_known_values(backend) -> None:
    x, y = torch.randn(2, 9), torch.randn(2, 5)
    assert pyguide.cka(x, y).item() == pytest.approx(1.0, abs=1e-6)  # biased at n = 2
    assert pyguide.cka(x, x).item() == pytest.approx(1.0, abs=1e-6)
    z = torch.randn(8, 3)
    assert pyguide.cka(z, z, debiased=True).item() == pytest.approx(1.0, abs=1e-6)
    many = torch.stack(
        [pyguide.cka(torch.randn(8, 40), torch.randn(8, 40), debiased=True) for _ in range(50)]
    )
    assert many.min() < 0  # debiased values are not clamped


def test_each_distinct_tensor_has_one_gram(monkeypatch) -> None:
    counts = []
    original = _native.gram

    def counting(layers, *args):
        counts.append(len(layers))
        return original(layers, *args)

    monkeypatch.setattr(_native, "gram", counting)
    x, y, unused = torch.randn(30, 50), torch.randn(30, 60), torch.randn(30, 70)
    # Shares memory with x but is another tensor: x may need a gradient where it does not.
    alias = x.detach()
    pyguide.cka_pairs([x, x, unused], [y, x, y, alias], pairs=[(0, 0), (1, 1), (0, 2), (0, 3)])
    assert counts == [3]
    counts.clear()
    pyguide.cka_matrix([x, y, unused])
    assert counts == [3]


def test_only_layers_that_need_a_gradient_get_one(monkeypatch) -> None:
    counts = []
    original = _native.apply

    def counting(coefficients, dtype, n, layers, *args):
        counts.append(len(layers))
        return original(coefficients, dtype, n, layers, *args)

    monkeypatch.setattr(_native, "apply", counting)
    target = [torch.randn(16, d, requires_grad=True) for d in (20, 30)]
    guide = [torch.randn(16, d) for d in (40, 50)]
    pyguide.cka_pairs(target, guide).sum().backward()
    assert counts == [2]
    assert all(g.grad is None for g in guide)


def test_route_is_chosen_by_work() -> None:
    from pyguide.ops import routes

    tall = [torch.randn(2000, 8), torch.randn(2000, 16)]
    wide = [torch.randn(2000, 3000), torch.randn(2000, 5)]
    parts = routes.split_by_route([*tall, *wide], [(0, 1), (2, 3)], "auto", False)
    assert [(p.in_feature_space, p.layers) for p in parts] == [(False, [2, 3]), (True, [0, 1])]
    values = pyguide.cka_pairs([tall[0], wide[0]], [tall[1], wide[1]], debiased=True)
    for at, (x, y) in enumerate(((tall[0], tall[1]), (wide[0], wide[1]))):
        exact = reference.cka(x.double(), y.double(), debiased=True)
        assert values[at].item() == pytest.approx(exact.item(), abs=1e-5)


def test_shapes_and_empty_pairs(backend) -> None:
    x = torch.randn(7)
    assert pyguide.cka(x, torch.randn(7, 2, 3)).shape == ()
    assert pyguide.cka_pairs([], []).shape == (0,)
    assert pyguide.cka_pairs([x], [x, x], pairs=[]).shape == (0,)
    assert pyguide.cka_pairs([x.double()], [x.double()], pairs=[]).dtype == torch.float64
    assert pyguide.cka_matrix([x, x, x], [x]).shape == (3, 1)
    assert pyguide.cka(x.double(), x).dtype == torch.float32
    assert pyguide.cka(x.double(), x.double()).dtype == torch.float64


def test_a_pair_given_twice_counts_twice(backend) -> None:
    x = torch.randn(9, 4).double().requires_grad_()
    y = torch.randn(9, 3).double()
    once = torch.autograd.grad(pyguide.cka_pairs([x], [y]).sum(), x)[0]
    values = pyguide.cka_pairs([x], [y], pairs=[(0, 0), (0, 0)])
    twice = torch.autograd.grad(values.sum(), x)[0]
    assert values.shape == (2,) and values[0] == values[1]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 0.1, -300.7])
@BOTH
@ROUTES
def test_constant_features_are_degenerate(backend, dtype, constant, debiased, route) -> None:
    flat = torch.full((20, 6), constant, dtype=dtype, requires_grad=True)
    x = torch.randn(20, 5).to(dtype).requires_grad_()
    values, flags = cka_pairs_and_flags(
        [flat, x, flat], [x, x, flat], debiased=debiased, route=route
    )
    values.sum().backward()
    assert flags.tolist() == [True, False, True]
    assert values[0] == 0 and values[2] == 0
    assert torch.equal(flat.grad, torch.zeros_like(flat))
    assert torch.isfinite(x.grad).all()


@ROUTES
def test_a_diagonal_gram_is_degenerate_when_debiased(backend, route: str) -> None:
    # One sample differs: Kc is diagonal up to centring, so its U-centred form is zero.
    spike = torch.zeros(12, 3)
    spike[4] = 1.0
    x = torch.randn(12, 5)
    value, flag = cka_pairs_and_flags([spike], [x], debiased=True, route=route)
    assert value.item() == 0 and flag.item()
    value, flag = cka_pairs_and_flags([spike], [x], debiased=False, route=route)
    assert value.item() > 0 and not flag.item()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 3, 19])
@BOTH
@ROUTES
def test_nan_and_inf_are_never_masked(backend, bad, row, debiased, route) -> None:
    x = torch.randn(20, 6)
    x[row, 2] = bad
    x.requires_grad_()
    y = torch.randn(20, 5, requires_grad=True)
    flat = torch.ones(20, 4)
    values, flags = cka_pairs_and_flags([x, x, y], [y, flat, flat], debiased=debiased, route=route)
    assert values[:2].isnan().all() and values[2] == 0
    assert flags.tolist() == [False, False, True]
    values[0].backward()
    assert x.grad.isnan().any() and y.grad.isnan().any()


def test_signal_at_1e_minus_13_is_kept(backend) -> None:
    # Deep networks at initialisation: no absolute epsilon may swallow them.
    x, y = torch.randn(64, 30), torch.randn(64, 40)
    small = pyguide.cka(x * 1e-7, y * 1e-7, debiased=True)
    assert small.item() == pytest.approx(pyguide.cka(x, y, debiased=True).item(), abs=1e-6)


@BOTH
def test_loss_module(backend, debiased: bool) -> None:
    xs = [torch.randn(12, d, requires_grad=True) for d in (3, 40)]
    ys = [torch.randn(12, d) for d in (5, 6)]
    values = pyguide.cka_pairs(xs, ys, debiased=debiased)
    total = pyguide.CKALoss(debiased=debiased)(xs, ys)
    mean = pyguide.CKALoss(debiased=debiased, reduction="mean")(xs, ys)
    chosen = pyguide.CKALoss(debiased=debiased, pairs=[(1, 0)])(xs, ys)
    torch.testing.assert_close(total, (1 - values).sum())
    torch.testing.assert_close(mean, (1 - values).mean())
    torch.testing.assert_close(chosen, 1 - pyguide.cka(xs[1], ys[0], debiased=debiased))
    assert pyguide.CKALoss(debiased=debiased, reduction="mean")([], []).item() == 0
    assert "debiased" in repr(pyguide.CKALoss(debiased=debiased))


def test_inference_and_no_grad(backend) -> None:
    x = torch.randn(10, 3, requires_grad=True)
    y = torch.randn(10, 4)
    expected = pyguide.cka(x, y).item()
    with torch.no_grad():
        assert pyguide.cka(x, y).item() == expected
    with torch.inference_mode():
        assert pyguide.cka(x, y).item() == expected
        assert pyguide.cka(x * 1, y + 0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_inside(dtype: torch.dtype) -> None:
    x = torch.randn(4096, 24, requires_grad=True)  # tall: the feature route multiplies in torch
    y = torch.randn(4096, 30)
    narrow = torch.randn(30, 50, requires_grad=True)
    for a, b in ((x, y), (narrow, torch.randn(30, 60))):
        plain = pyguide.cka(a, b)
        (plain_grad,) = torch.autograd.grad(plain, a)
        with torch.autocast("cpu", dtype=dtype):
            cast = pyguide.cka(a, b)
        (cast_grad,) = torch.autograd.grad(cast, a)
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast) and torch.equal(plain_grad, cast_grad)


def test_a_lower_matmul_precision_does_not_reach_inside() -> None:
    """In feature space torch multiplies: in float64 where its float32 may become bfloat16."""
    x, y = torch.randn(1000, 30), torch.randn(1000, 20)

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        value, _ = cka_pairs_and_flags([x], [y], route="feature")
        return torch.autograd.grad(value.sum(), x)[0]

    exact = gradient(x.double(), y.double()).float()
    before = torch.get_float32_matmul_precision()
    assert not torch.equal(gradient(x, y), exact)  # float32 products: so the last digits differ
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(gradient(x, y), exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_large_upstream_gradient_meets_half_only_at_the_end(relative_error) -> None:
    # A GradScaler's 65536 must multiply in float32: the bare gradient is far below half's range.
    x = torch.randn(256, 4000).half().requires_grad_()
    y = torch.randn(256, 4000).half()
    (scaled,) = torch.autograd.grad(pyguide.cka(x, y, debiased=True) * 65536.0, x)
    x64 = x.detach().double().requires_grad_()
    value = reference.cka(x64, y.double(), debiased=True)
    (exact,) = torch.autograd.grad(value * 65536.0, x64)
    assert scaled.dtype == torch.float16
    assert relative_error(scaled, exact) < 1e-3
