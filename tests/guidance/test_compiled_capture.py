"""Capture from a compiled target."""

from __future__ import annotations

import pytest
import torch
from networks import N, distance, guided, mlp
from torch import nn
from torch._dynamo.testing import CompileCounter

from pyguide.guidance import Guidance


def test_compiled_target_captures_with_one_graph(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    counter = CompileCounter()
    compiled = torch.compile(target, backend=counter, fullgraph=True)
    guidance = Guidance(compiled, guide, pairs=[("0", "0")])
    expected = distance(target[0](x), guide[0](x))
    for _ in range(3):
        with guidance.capture():
            compiled(x)
        loss = guidance.loss(x)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        loss.backward()
    assert target[0].weight.grad.norm() > 1e-4
    assert counter.frame_count == 1


def test_compiled_target_stops_returning_what_is_no_longer_captured(x):
    outputs: list[int] = []

    def backend(graph, inputs):
        outputs.append(len(graph.graph.output_node().args[0]))
        return graph.forward

    torch._dynamo.reset()
    target, guide = mlp(6, 8, 8, 8, 8, 3), mlp(6, 5, 3, seed=1)
    compiled = torch.compile(target, backend=backend, fullgraph=True)
    guidance = Guidance(compiled, guide)
    for _ in range(3):
        with guidance.capture():
            compiled(x)
        guidance.loss(x)
    guidance.release()
    for _ in range(2):
        with guidance.capture():
            compiled(x)
    assert outputs == [6, 2, 1]


def test_compiled_target_keeps_the_output_from_an_inplace_change(x):
    target, guide = mlp(6, 8, 3, inplace=True), mlp(6, 5, 3, seed=1)
    compiled = torch.compile(target, backend="aot_eager", fullgraph=True)
    loss = guided(compiled, guide, x, pairs=[("0", "0")])
    assert loss == pytest.approx(distance(target[0](x), guide[0](x)), abs=1e-6)


class _Compiled(nn.Module):
    """A network whose code torch.compile caches for the class."""

    def __init__(self):
        super().__init__()
        self.net = mlp(6, 8, 3)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("pairs", [[("net.0", "0")], "even"])
@pytest.mark.parametrize("early", ["itself", "another of its class", "itself, released"])
def test_a_target_compiled_too_early_raises_until_reset(x, early, pairs):
    torch.compiler.reset()
    model, guide = _Compiled(), mlp(6, 5, 3, seed=1)
    target = torch.compile(model, backend="eager", fullgraph=True)
    if early == "itself":
        target(x)
    elif early == "another of its class":
        torch.compile(_Compiled(), backend="eager", fullgraph=True)(x)
    guidance = Guidance(target, guide, pairs=pairs)
    if early == "itself, released":
        state = guidance.state_dict()
        guidance.release()
        target(x)
        guidance.load_state_dict(state)

    with guidance.capture():
        target(x)
    with pytest.raises(RuntimeError, match=r"nothing was captured.*call torch\.compiler\.reset"):
        guidance.loss(x)
    torch.compiler.reset()
    with guidance.capture():
        target(x)
    expected = distance(model.net[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_a_plan_of_a_compiled_target_compiles_nothing(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    counter = CompileCounter()
    compiled = torch.compile(target, backend=counter, fullgraph=True)
    guidance = Guidance(compiled, guide, pairs=[("0", "0")])
    plans = [guidance.plan(x)]
    for _ in range(2):
        with guidance.capture():
            compiled(x)
        loss = guidance.loss(x).item()
        plans.append(guidance.plan(x))
    assert counter.frame_count == 1
    assert plans[0].rows[0].target_shape == (N, 8)
    assert plans == plans[:1] * 3
    assert loss == pytest.approx(distance(target[0](x), guide[0](x)), abs=1e-6)
