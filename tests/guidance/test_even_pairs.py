""" "even", lists of pairs, and paths with wrapper prefixes."""

from __future__ import annotations

import pytest
import torch
from guided_training import N, Net, batch, step
from networks import hooks
from torch import nn

from pyguide.guidance import Guidance


def test_even_pairs_spread_over_execution_order():
    x, y = batch()
    target, guide = Net(6, 12, seed=0), Net(3, 9, seed=1)
    # Registered last to first: execution order is what counts.
    guide._modules = dict(reversed(guide._modules.items()))
    expected = [
        ("blocks.0.0", "blocks.0.0"),
        ("blocks.3.0", "blocks.1.0"),
        ("blocks.5.0", "blocks.2.0"),
    ]
    lazily = Guidance(target, guide)
    assert lazily.pairs is None
    step(target, lazily, x, y)
    assert lazily.pairs == expected
    assert hooks(target) == hooks(guide) == 3
    lazily.close()
    assert Guidance(target, guide, example=x).pairs == expected


def test_even_pairs_a_layer_with_two_paths_once():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.out = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.layers = nn.ModuleList([self.fc1, self.fc2, self.out])

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            return self.layers[-1](x)

    x, _ = batch()
    target, guide = Aliased(), Aliased()
    lazily = Guidance(target, guide)
    with lazily.capture():
        target(x)
    lazily.loss(x)
    assert lazily.pairs == [("fc1", "fc1"), ("fc2", "fc2")]
    assert Guidance(target, guide, example=x).pairs == lazily.pairs


def test_even_candidates_of_a_convnet_and_a_recurrent_net():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 6)
            self.norm = nn.LayerNorm(6)
            self.rnn = nn.GRU(6, 6, batch_first=True)
            self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
            self.shared = nn.Linear(6, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            h, _ = self.rnn(self.norm(self.embed(x.transpose(1, 2))))
            h, _ = self.mix(h, h, h)
            return self.head(self.shared(self.shared(h))[:, -1])

    convnet = nn.Sequential(
        nn.Conv1d(1, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.Conv1d(1, 1, 1),
        nn.AdaptiveAvgPool1d(3),
    )
    convnet.insert(7, nn.Unflatten(1, (1, 5)))
    x = torch.randn(N, 1, 10)
    expected = [("embed", "0"), ("rnn", "4"), ("mix", "6")]
    target = Recurrent()
    assert Guidance(target, convnet, example=x).pairs == expected
    guidance = Guidance(target, convnet)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    assert guidance.pairs == expected


def test_even_without_candidates_raises():
    x, _ = batch()
    target = nn.Sequential(nn.Linear(10, 4))
    guidance = Guidance(target, Net(2, 9, seed=1))
    with guidance.capture():
        target(x)
    with pytest.raises(RuntimeError, match="no layer to pair in the target"):
        guidance.loss(x)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("blocks.1.O", "head"), r"the target has no layer 'blocks\.1\.O'; did you mean 'blocks"),
        (("head", "heat"), r"the guide has no layer 'heat'; did you mean 'head'"),
        (("head", ""), "the guide has no layer ''"),
        (("head", "zzzzzzzz"), r"pyguide\.list_layers"),
        (("head",), "a pair is two strings"),
        ("hd", "a pair is two strings"),
        ((0, 0), r"a pair is two strings.*got \(0, 0\)"),
        (0, "a pair is two strings"),
    ],
)
def test_bad_pairs_raise(pair, message):
    with pytest.raises(ValueError, match=message):
        Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1), pairs=[pair])


class _Wrapped(nn.Module):
    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.add_module(name, module)
        self.name = name

    def forward(self, *args):
        return getattr(self, self.name)(*args)


@pytest.mark.parametrize("outer", ["module", "_orig_mod", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("inner", [None, "_orig_mod", "_checkpoint_wrapped_module"])
def test_paths_ignore_wrapper_prefixes(outer, inner):
    x, _ = batch()
    plain = Net(3, 12, seed=0)
    if inner is not None:
        plain.blocks[1] = _Wrapped(inner, plain.blocks[1])
    target, guide = _Wrapped(outer, plain), Net(3, 9, seed=1)
    written = f"{outer}.blocks.1.{inner}.0" if inner else f"{outer}.blocks.1.0"
    for path in ("blocks.1.0", "module.blocks.1.0", written):
        guidance = Guidance(target, guide, pairs=[(path, "module.blocks.0.0")])
        assert guidance.pairs == [("blocks.1.0", "blocks.0.0")]
        with guidance.capture():
            target(x)
        assert 0 < guidance.loss(x).item() < 1
        guidance.close()
    assert [t for t, _ in Guidance(target, guide, example=x).pairs] == [
        "blocks.0.0",
        "blocks.1.0",
        "blocks.2.0",
    ]
