"""CKA of every token of (n, T, ...) layers on its own."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import reference
from pyguide.distances import LinearCKA
from pyguide.ops import cka_pairs_and_flags


def _layers(dtype: torch.dtype, n: int = 12, tokens: int = 5) -> list[torch.Tensor]:
    """Layers (n, T, ...) in memory orders that models produce."""
    shared = torch.randn(n, tokens, 3, dtype=torch.float64)

    def mixed(d: int) -> torch.Tensor:
        return shared @ torch.randn(3, d, dtype=torch.float64) + torch.randn(n, tokens, d)

    time_first = mixed(7).transpose(0, 1).contiguous().transpose(0, 1)
    image = mixed(6).view(n, tokens, 2, 3)
    gaps = mixed(10)[:, :, ::2]
    return [x.to(dtype) for x in (mixed(40), time_first, image, gaps)]


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("route", ["sample", "feature"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_token_is_a_pair_of_its_own(debiased, route, dtype, relative_error) -> None:
    layers = _layers(dtype)
    xs, ys = [x.requires_grad_() for x in layers[:2]], [*layers[2:], layers[0]]
    pairs = [(0, 0), (1, 1), (0, 1), (1, 2), (0, 2)]
    values, flags = cka_pairs_and_flags(
        xs, ys, pairs=pairs, debiased=debiased, per_token=True, route=route
    )
    assert values.shape == flags.shape == (5, 5) and not flags.any()
    exact = {id(x): x.detach().double().requires_grad_(x.requires_grad) for x in layers}
    expected = torch.stack(
        [
            torch.stack(
                [
                    reference.cka(x[:, t], y[:, t], debiased=debiased)
                    for x, y in [(exact[id(xs[i])], exact[id(ys[j])])]
                    for t in range(5)
                ]
            )
            for i, j in pairs
        ]
    )
    assert relative_error(values, expected) < 1e-5
    weights = torch.randn(5, 5, dtype=torch.float64)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    for x in xs:
        assert x.grad.stride() == torch.empty_like(x).stride()
        bound = 1e-4 + 2 * torch.finfo(dtype).eps
        assert relative_error(x.grad, exact[id(x)].grad) < bound


def test_the_route_with_less_work_is_taken(monkeypatch) -> None:
    n, tokens, d = 600, 2, 20
    x, y = torch.randn(n, tokens, d), torch.randn(n, tokens, d)
    expected = pyguide.cka(x, y, per_token=True)
    from pyguide.ops import cpu

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("600 x 600 Gram matrices for 20 features")

    monkeypatch.setattr(cpu, "alignment", fail)
    torch.testing.assert_close(pyguide.cka(x, y, per_token=True), expected)
    by_sample = torch.stack([reference.cka(x[:, t], y[:, t]) for t in range(tokens)])
    torch.testing.assert_close(expected, by_sample, rtol=0, atol=1e-5)


def test_a_degenerate_token_is_flagged_alone(backend) -> None:
    x = torch.randn(8, 3, 4, requires_grad=True)
    y = torch.randn(8, 3, 4)
    y[:, 1] = 2.5
    values, flags = cka_pairs_and_flags([x], [y], per_token=True)
    assert flags.tolist() == [[False, True, False]] and values[0, 1] == 0
    values.sum().backward()
    assert (x.grad[:, 1] == 0).all() and (x.grad[:, 0] != 0).any()


def test_a_nan_stays_in_its_token(backend) -> None:
    x, y = torch.randn(8, 3, 4), torch.randn(8, 3, 4)
    x[2, 1, 3] = float("nan")
    assert pyguide.cka(x, y, per_token=True).isnan().tolist() == [False, True, False]


def test_an_expanded_token_axis(backend) -> None:
    x = torch.randn(8, 1, 4).expand(8, 3, 4)
    y = torch.randn(8, 3, 4)
    torch.testing.assert_close(
        pyguide.cka(x, y, per_token=True), pyguide.cka(x.contiguous(), y, per_token=True)
    )


@pytest.mark.filterwarnings("ignore:biased CKA")
def test_loss_and_distance(backend) -> None:
    x, y = torch.randn(8, 3, 4), torch.randn(8, 3, 6)
    expected = 1 - pyguide.cka(x, y, per_token=True)
    loss = pyguide.CKALoss(per_token=True)
    torch.testing.assert_close(loss([x], [y]), expected.sum())
    mean = pyguide.CKALoss(per_token=True, reduction="mean")
    torch.testing.assert_close(mean([x, x], [y, y]), expected.mean())
    distances, flags = LinearCKA().values_and_flags([x], [y], per_token=True)
    torch.testing.assert_close(distances, expected[None])
    assert flags.shape == (1, 3)
    assert "per_token=True" in repr(loss)


def test_no_pairs(backend) -> None:
    x = torch.randn(8, 3, 4)
    assert pyguide.cka_pairs([x], [x], pairs=[], per_token=True).shape == (0, 3)
    assert pyguide.cka_pairs([], [], per_token=True).shape == (0,)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(8, 3, 4), (8,)], r"ys\[0\] has shape \(8,\)"),
        ([(8, 3, 4), (8, 2, 4)], r"xs\[0\] has 3, ys\[0\] has 2"),
        ([(8, 0, 4), (8, 0, 4)], "no features"),
        ([(8, 3, 4), (7, 3, 4)], "same number of samples"),
    ],
)
def test_bad_layers_raise(shapes, message) -> None:
    x, y = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        pyguide.cka_pairs([x], [y], per_token=True)


def test_a_whole_layer_differs_from_its_tokens(backend) -> None:
    x, y = torch.randn(8, 3, 4), torch.randn(8, 3, 4)
    assert pyguide.cka(x, y).shape == ()
    assert (pyguide.cka(x, y) - pyguide.cka(x, y, per_token=True).mean()).abs() > 1e-3


def test_one_native_call_for_all_tokens(monkeypatch) -> None:
    from pyguide import _native

    calls = []
    for name in ("gram", "alignment", "coefficients", "apply"):
        original = getattr(_native, name)

        def counted(*args: object, name: str = name, original=original) -> None:
            calls.append(name)
            original(*args)

        monkeypatch.setattr(_native, name, counted)
    x = torch.randn(8, 50, 4, requires_grad=True)
    pyguide.CKALoss(per_token=True)([x], [torch.randn(8, 50, 4)]).backward()
    assert sorted(calls) == ["alignment", "apply", "coefficients", "gram"]


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
def test_compiled() -> None:
    x, y = torch.randn(8, 3, 4, requires_grad=True), torch.randn(8, 3, 6)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (1 - pyguide.cka(x, y, per_token=True)).sum()

    compiled = torch.compile(loss, fullgraph=True)(x, y)
    (gradient,) = torch.autograd.grad(compiled, x)
    (expected,) = torch.autograd.grad(loss(x, y), x)
    torch.testing.assert_close(compiled, loss(x, y))
    torch.testing.assert_close(gradient, expected)
