"""list_layers."""

from __future__ import annotations

import pytest
import torch
from networks import Layer, N, hooks, mlp
from torch import nn

from pyguide import list_layers


class _Zoo(nn.Module):
    """Runs in another order than registered; repeats; returns a tuple, a dict, a text; draws."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.wrap = Layer(lambda x: {"x": x})
        self.text = Layer(lambda x: "text")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.block[1].running_mean = self.block[1].running_mean + 1
        h = self.relu(self.relu(self.block(x + torch.rand(()))))
        h, _ = self.lstm(h[:, None].double().float())
        self.text(h)
        return self.last(self.wrap(h[:, -1])["x"])


def test_list_layers_in_execution_order(x):
    layers = [(i.path, i.type, i.shape, i.dtype, i.call) for i in list_layers(_Zoo(), x)]
    f = torch.float32
    assert layers == [
        ("block.0", "Linear", (N, 8), f, 0),
        ("block.1", "BatchNorm1d", (N, 8), f, 0),
        ("block", "Sequential", (N, 8), f, 0),
        ("relu", "ReLU", (N, 8), f, 0),
        ("relu", "ReLU", (N, 8), f, 1),
        ("lstm", "LSTM", (N, 1, 8), f, 0),
        ("wrap", "Layer", (N, 8), f, 0),
        ("last", "Linear", (N, 3), f, 0),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_list_layers_leaves_no_trace(x, fails):
    model = _Zoo().train()
    model.block[0].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    objects = dict(model.named_buffers())
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            list_layers(model, torch.zeros(N, 5))
    else:
        list_layers(model, x)
    assert [module.training for module in model.modules()] == modes
    for name, buffer in model.named_buffers():
        assert buffer is objects[name]
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks(model) == 0
    assert torch.is_grad_enabled()


def test_list_layers_takes_several_arguments(x):
    model = nn.Bilinear(6, 6, 3)
    outer = nn.Module()
    outer.inner = model
    outer.forward = lambda a, b: model(a, b)
    assert [i.path for i in list_layers(outer, (x, x))] == ["inner"]
    assert [i.path for i in list_layers(outer, {"a": x, "b": x})] == ["inner"]


def test_list_layers_of_a_compiled_model_that_has_run(x):
    model = mlp(6, 8, 3).eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    assert list_layers(compiled, x) == list_layers(model, x)
    assert [i.path for i in list_layers(model, x)] == ["0", "1", "2"]


def test_list_layers_shows_shapes_as_they_are_compared():
    model = nn.Sequential(nn.LSTM(6, 4))
    assert list_layers(model, torch.randn(5, N, 6))[0].shape == (N, 5, 4)
