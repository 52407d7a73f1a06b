"""Layers that are called several times."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks import distance, guided, hooks, mlp
from torch import nn
from torch._dynamo.testing import CompileCounter

from pyguide.guidance import Guidance, Pair


def test_a_layer_called_twice_raises_by_name(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.shared(self.shared(x)))

    with pytest.raises(RuntimeError, match="'shared' of the target was called more than once"):
        guided(Twice(), mlp(6, 5, 3), x, pairs=[("shared", "0")])


def test_two_target_forwards_in_a_window_raise(x):
    target = mlp(6, 8, 3)
    guidance = Guidance(target, mlp(6, 5, 3), pairs=[("0", "0")])
    with guidance.capture():
        target(x)
        target(x)
    with pytest.raises(RuntimeError, match="once a window"):
        guidance.loss(x)


class Repeats(nn.Module):
    """Calls one ReLU three times and one Linear twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.last(self.activations(x)[-1])

    def activations(self, x):
        """What the ReLU returned."""
        found = [self.relu(self.first(x))]
        for _ in range(2):
            found.append(self.relu(self.shared(found[-1])))
        return found


def test_a_call_is_addressed_by_its_number(x):
    target, guide = Repeats(), Repeats()
    guidance = Guidance(target, guide, pairs=[("relu:2", "relu:0"), ("relu:0", "first:0")])
    for _ in range(2):
        with guidance.capture():
            target(x)
        guidance.loss(x)
        ts, gs = target.activations(x), guide.activations(x)
        expected = [distance(ts[2], gs[0]), distance(ts[0], guide.first(x))]
        assert guidance.last.tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] > 0.01
    guidance.close()
    assert hooks(target) == hooks(guide) == 0


def test_only_the_wanted_call_is_kept(x):
    target = Repeats()
    kept: list[weakref.ref] = []
    target.relu.register_forward_hook(lambda m, args, output: kept.append(weakref.ref(output)))
    guidance = Guidance(target, mlp(6, 5, 3), pairs=[("relu:1", "0")])
    with guidance.capture(), torch.no_grad():
        target(x)
    gc.collect()
    assert [reference() is not None for reference in kept] == [False, True, False]


@pytest.mark.parametrize("pairs", [[("relu:2", "0")], [("relu*", "0")], "paper"])
def test_two_target_forwards_with_calls_by_number_raise(x, pairs):
    target = Repeats()
    guidance = Guidance(target, mlp(6, 5, 3), pairs=pairs)
    with guidance.capture():
        target(x)
        target(x)
    with pytest.raises(RuntimeError, match="the target was called more than once"):
        guidance.loss(x)


def test_a_call_that_does_not_happen_raises(x):
    with pytest.raises(RuntimeError, match=r"no layer 'relu:3' of the target: .* called 3 times"):
        guided(Repeats(), mlp(6, 5, 3), x, pairs=[("relu:3", "0")])
    with pytest.raises(ValueError, match="the target has no layer 'rely:1'; did you mean 'relu'"):
        Guidance(Repeats(), mlp(6, 5, 3), pairs=[("rely:1", "0")])


def test_a_module_name_with_a_colon_is_a_name(x):
    target = nn.Sequential()
    target.add_module("a:0", nn.Linear(6, 8))
    target.add_module("last", nn.Linear(8, 3))
    guide = mlp(6, 5, 3)
    loss = guided(target, guide, x, pairs=[("a:0", "0")])
    assert loss == pytest.approx(distance(target[0](x), guide[0](x)), abs=1e-6)


def test_calls_by_number_in_a_compiled_target(x):
    target, guide = Repeats(), mlp(6, 5, 3)
    counter = CompileCounter()
    compiled = torch.compile(target, backend=counter, fullgraph=True)
    pair = Pair("relu:1", "0", extract=lambda output: output[:, :4])
    guidance = Guidance(compiled, guide, pairs=[pair])
    for _ in range(3):
        with guidance.capture():
            compiled(x)
        loss = guidance.loss(x).item()
    assert loss == pytest.approx(
        distance(target.activations(x)[1][:, :4], guide[0](x)[:, :4]), abs=1e-6
    )
    assert counter.frame_count == 1
