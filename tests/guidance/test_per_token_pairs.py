"""Per-token pairs: one comparison a position, and their mean."""

from __future__ import annotations

import warnings

import pytest
import torch
from networks import Layer, N, mlp
from torch import Tensor, nn

from pyguide import reference
from pyguide.distances import LinearCKA
from pyguide.guidance import Guidance, Pair

T = 5


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(N, T, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _by_position(x: Tensor, y: Tensor, debiased: bool) -> Tensor:
    """The mean over positions of float64 distances, position by position."""
    return torch.stack(
        [1 - reference.cka(x[:, t], y[:, t], debiased=debiased) for t in range(x.size(1))]
    ).mean()


@pytest.mark.parametrize("name", ["cka", "debiased_cka"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(tokens, name, dtype, relative_error):
    """Three pairs with a layer in two of them, beside a pair of whole sequences."""
    debiased = name == "debiased_cka"
    target, guide = mlp(6, 8, 7, 3).to(dtype), mlp(6, 5, 4, 3, seed=1).to(dtype)
    pairs = [
        Pair("0", "0", per_token=True),
        ("2", "2"),
        Pair("2", "0", per_token=True),
        Pair("2", "2", per_token=True),
    ]
    x = tokens.to(dtype)
    guidance = Guidance(target, guide, pairs=pairs, distance=name)
    with guidance.capture():
        target(x)
    loss = guidance.loss(x)
    loss.backward()

    exact, exact_guide = mlp(6, 8, 7, 3).double(), mlp(6, 5, 4, 3, seed=1).double()
    ts, gs = (exact[0](x.double()), exact[:3](x.double())), (exact_guide[0], exact_guide[:3])
    gs = [layer(x.double()).detach() for layer in gs]
    expected = [
        _by_position(ts[0], gs[0], debiased),
        1 - reference.cka(ts[1], gs[1], debiased=debiased),
        _by_position(ts[1], gs[0], debiased),
        _by_position(ts[1], gs[1], debiased),
    ]
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert guidance.last.tolist() == pytest.approx([e.item() for e in expected], abs=tolerance)
    torch.stack(expected).sum().backward()
    for layer in (0, 2):
        gradient = target[layer].weight.grad
        assert relative_error(gradient, exact[layer].weight.grad) < 10 * tolerance
    assert guidance.pairs == [("0", "0"), ("2", "2"), ("2", "0"), ("2", "2")]


def test_layers_of_several_lengths(tokens):
    """Pairs of one T go into one call; each pair has its own."""
    shorter = nn.Sequential(nn.Linear(6, 8), Layer(lambda x: x[:, :3]), nn.Linear(8, 4))
    target, guide = shorter.double(), mlp(6, 5, 3).double()
    first = (None, lambda output: output[:, :3])
    calls = []

    class Counting(LinearCKA):
        def values_and_flags(self, xs, ys, *, pairs=None, per_token=False):
            calls.append((len(pairs), per_token))
            return super().values_and_flags(xs, ys, pairs=pairs, per_token=per_token)

    pairs = [
        Pair("0", "0", per_token=True),
        Pair("1", "0", per_token=True, extract=first),
        Pair("2", "2", per_token=True, extract=first),
        Pair("0", "2", per_token=True),
    ]
    guidance = Guidance(target, guide, pairs=pairs, distance=Counting())
    with guidance.capture():
        target(tokens)
    guidance.loss(tokens)
    x, y = target[0](tokens), guide[0](tokens)
    expected = [
        _by_position(x, y, False),
        _by_position(x[:, :3], y[:, :3], False),
        _by_position(target(tokens), guide(tokens)[:, :3], False),
        _by_position(x, guide(tokens), False),
    ]
    assert guidance.last.tolist() == pytest.approx([e.item() for e in expected], abs=1e-12)
    assert calls == [(2, True), (2, True)]


def test_a_position_of_one_feature(tokens):
    target, guide = mlp(6, 8, 3).double(), mlp(6, 5, 3).double()
    one = (lambda output: output[..., 0], None)
    guidance = Guidance(target, guide, pairs=[Pair("0", "0", per_token=True, extract=one)])
    with guidance.capture():
        target(tokens)
    guidance.loss(tokens)
    expected = _by_position(target[0](tokens)[..., :1], guide[0](tokens), False)
    assert guidance.last.item() == pytest.approx(expected.item(), abs=1e-12)


def test_different_numbers_of_positions_raise_by_name(tokens):
    target = nn.Sequential(Layer(lambda x: x[:, :3]), nn.Linear(6, 3)).double()
    guidance = Guidance(target, mlp(6, 5, 3).double(), pairs=[Pair("1", "0", per_token=True)])
    message = r"'1' gave \(40, 3, 3\) and guide layer '0' \(40, 5, 5\).*extract.*per_token=False"
    with pytest.raises(ValueError, match=message):
        guidance.plan(tokens)
    with guidance.capture():
        target(tokens)
    with pytest.raises(ValueError, match=message):
        guidance.loss(tokens)


def test_only_a_pair_that_is_degenerate_everywhere_is_named(tokens):
    """The first position of a language model, its start token, never differs between samples."""
    target, guide = mlp(6, 8, 3).double(), mlp(6, 5, 3).double()
    tokens[:, 0] = 1
    guidance = Guidance(target, guide, pairs=[Pair("0", "0", per_token=True)])

    def step() -> float:
        with guidance.capture():
            target(tokens)
        return guidance.loss(tokens).item()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = step()
    rest = _by_position(target[0](tokens)[:, 1:], guide[0](tokens)[:, 1:], False).item()
    assert loss == pytest.approx((1 + (T - 1) * rest) / T, abs=1e-12)  # 1 where degenerate
    tokens[:] = 1
    with pytest.warns(UserWarning, match="degenerate"):
        assert step() == 1
