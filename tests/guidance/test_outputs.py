"""Outputs that are not one tensor with the batch axis first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from networks import Layer, N, Pick, distance, guided, mlp
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyguide.guidance import Guidance, Pair


def test_tuple_output_stands_for_its_first_tensor():
    torch.manual_seed(0)
    x = torch.randn(N, 5, 6)
    target = Pick(nn.LSTM(6, 6, batch_first=True), lambda output: output[0][:, -1])
    guide = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    loss = guided(target, guide, x, pairs=[("layer", "0")])
    sequence, _ = target.layer(target.first(x))
    assert loss == pytest.approx(distance(sequence, guide[0](x)), abs=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "attention", "transformer"])
def test_time_first_layers_are_compared_by_sample(kind):
    torch.manual_seed(0)
    layer, call = {
        "lstm": (nn.LSTM(6, 6), lambda m, x: m(x)[0]),
        "attention": (nn.MultiheadAttention(6, 2), lambda m, x: m(x, x, x)[0]),
        "transformer": (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), lambda m, x: m(x)),
    }[kind]

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(call(self.layer, x.transpose(0, 1)))

    x = torch.randn(N, 5, 6)
    target, guide = TimeFirst(), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    loss = guided(target, guide, x, pairs=[("layer", "0")])
    sequence = call(layer, x.transpose(0, 1)).transpose(0, 1)
    assert sequence.shape == (N, 5, 6)
    assert loss == pytest.approx(distance(sequence, guide[0](x)), abs=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_inside_a_transformer_are_compared_by_sample(batch_first):
    x = torch.randn(N, 5, 6)

    def network() -> nn.Module:
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(6), enable_nested_tensor=False)

    guide, target = network(), network()
    outputs = {}
    paths = ["layers.0.linear1", "layers.1", "norm"]
    for path in paths:
        target.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: outputs.update({path: output})
        )
    inputs = x if batch_first else x.transpose(0, 1)
    guidance = Guidance(target, guide, pairs=[(path, "layers.0.linear2") for path in paths])
    with guidance.capture():
        target(inputs)
    guidance.loss(inputs)
    hidden = []
    guide.layers[0].linear2.register_forward_hook(lambda m, args, output: hidden.append(output))
    guide(inputs)
    by_sample = [t if batch_first else t.transpose(0, 1) for t in (*outputs.values(), *hidden)]
    assert all(t.shape[:2] == (N, 5) for t in by_sample)
    *ours, other = by_sample
    assert guidance.last.tolist() == pytest.approx([distance(t, other) for t in ours], abs=1e-6)


def test_layers_inside_a_transformer_of_the_guide():
    """In eval mode without gradient torch has a fast path around the layers inside."""
    x = torch.randn(N, 5, 6)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    guide = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    target = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    loss = guided(target, guide, x, pairs=[("0", "layers.1.linear1")])
    inside = []
    guide.layers[1].linear1.register_forward_hook(lambda m, args, output: inside.append(output))
    guide(x)
    assert loss == pytest.approx(distance(target[0](x), inside[0]), abs=1e-6)


@dataclass
class _ModelOutput(OrderedDict):
    """As Hugging Face's: a dataclass and a dict of the fields that are not None."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None

    def __post_init__(self):
        self.update({name: value for name, value in vars(self).items() if value is not None})


@dataclass
class _Plain:
    hidden: torch.Tensor
    text: str = "text"


class _Named(NamedTuple):
    hidden: torch.Tensor
    attention: torch.Tensor


@pytest.mark.parametrize(
    ("output", "pick"),
    [
        (lambda x: {"hidden": x, "text": "text"}, lambda o: o["hidden"]),
        (lambda x: [x, x + 1], lambda o: o[0]),
        (lambda x: _Named(x, x.square()), lambda o: o.hidden),
        (_Plain, lambda o: o.hidden),
        (lambda x: _ModelOutput(loss=x.mean(), logits=x), lambda o: o.logits),
        (
            lambda x: _ModelOutput(logits=x[:, :1], last_hidden_state=x),
            lambda o: o.last_hidden_state,
        ),
    ],
    ids=["dict", "list", "named tuple", "dataclass", "logits", "last hidden state"],
)
def test_what_stands_for_an_output_of_several_parts(x, output, pick):
    target, guide = Pick(Layer(output), pick), mlp(6, 5, 3)
    loss = guided(target, guide, x, pairs=[("layer", "0")])
    assert loss == pytest.approx(distance(target.first(x), guide[0](x)), abs=1e-6)


@pytest.mark.parametrize(
    ("output", "pick", "kind"),
    [
        (lambda x: {"a": x, "b": x}, lambda o: o["a"], "dict"),
        (lambda x: ("text", x), lambda o: o[1], "tuple"),
    ],
)
def test_an_unclear_output_raises_and_extract_clears_it(x, output, pick, kind):
    target, guide = Pick(Layer(output), pick), mlp(6, 5, 3)
    message = f"^layer 'layer' of the target returned {kind}.*not clear.*extract"
    with pytest.raises(TypeError, match=message):
        guided(target, guide, x, pairs=[("layer", "0")])
    loss = guided(target, guide, x, pairs=[Pair("layer", "0", extract=(pick, None))])
    assert loss == pytest.approx(distance(target.first(x), guide[0](x)), abs=1e-6)


def test_integers_raise_by_name(x):
    target = Pick(Layer(lambda x: (x.argmax(1), x)), lambda output: output[1])
    with pytest.raises(TypeError, match=r"'layer' of the target gave torch\.int64"):
        guided(target, mlp(6, 5, 3), x, pairs=[("layer", "0")])


# --- extract --------------------------------------------------------------------------------


def test_extract_for_both_layers_and_several_times_on_one():
    """The last hidden state of two LSTMs, and in another pair their first outputs."""
    x = torch.randn(N, 5, 6)
    target = Pick(nn.LSTM(6, 6, batch_first=True), lambda output: output[0][:, -1])
    guide = Pick(nn.LSTM(6, 6), lambda output: output[0].transpose(0, 1)[:, -1])
    pairs = [
        Pair("layer", "layer", extract=lambda output: output[1][0][-1]),
        Pair(
            "layer", "layer", extract=(lambda o: o[0][:, 0], lambda o: (o[0][:N].transpose(0, 1),))
        ),
        ("layer", "layer"),
    ]
    guide_x = torch.randn(N, 5, 6)
    guidance = Guidance(target, guide, pairs=pairs)
    with guidance.capture():
        target(x)
    guidance.loss(x, guide_inputs=guide_x.transpose(0, 1))
    t, (t_last, _) = target.layer(target.first(x))
    g, (g_last, _) = guide.layer(guide.first(guide_x.transpose(0, 1)))
    g = g.transpose(0, 1)
    expected = [distance(t_last[-1], g_last[-1]), distance(t[:, 0], g), distance(t, g)]
    assert guidance.last.tolist() == pytest.approx(expected, abs=1e-6)
    assert guidance.pairs == [("layer", "layer")] * 3


def test_what_extract_may_not_do(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3)
    with pytest.raises(TypeError, match="`extract` of layer '0' of the target returned dict"):
        guided(target, guide, x, pairs=[Pair("0", "0", extract=lambda output: {})])
    with pytest.raises(RuntimeError, match=r"'0' of the target.*`extract` detached it"):
        guided(target, guide, x, pairs=[Pair("0", "0", extract=torch.Tensor.detach)])
    inplace = mlp(6, 8, 3, inplace=True)
    with pytest.raises(RuntimeError, match="'0' of the target was modified in place"):
        guided(inplace, guide, x, pairs=[Pair("0", "0", extract=(lambda o: o[:, :4], None))])
    for bad in ("last", (lambda o: o, "last"), 3, _Unhashable()):
        with pytest.raises(TypeError, match="extract must be a function"):
            Pair("0", "0", extract=bad)


@dataclass
class _Unhashable:
    """A dataclass that compares by value has no hash."""

    def __call__(self, output):
        return output


# --- sequences of several lengths ------------------------------------------------------------


class _Packed(nn.Module):
    """An LSTM over sequences of several lengths, unsorted, as a PackedSequence."""

    def __init__(self, batch_first: bool, lengths: torch.Tensor):
        super().__init__()
        self.pack = Layer(
            lambda x: pack_padded_sequence(
                x if batch_first else x.transpose(0, 1),
                lengths,
                batch_first=batch_first,
                enforce_sorted=False,
            )
        )
        self.lstm = nn.LSTM(6, 4, batch_first=batch_first)

    def forward(self, x):
        return self.lstm(self.pack(x))[1][0][-1]


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_packed_sequence_is_padded_and_padding_does_not_count(batch_first):
    lengths = torch.randint(1, 6, (N,))
    lengths[:2] = torch.tensor([1, 5])
    x = torch.randn(N, 5, 6)
    target, guide = _Packed(batch_first, lengths), mlp(6, 5, 3)
    guidance = Guidance(target, guide, pairs=[("lstm", "0")])
    with guidance.capture():
        target(x)
    loss = guidance.loss(x).item()

    padded = torch.zeros(N, 5, 4)
    for i, length in enumerate(lengths):
        sequence = x[i, :length].unsqueeze(0 if batch_first else 1)
        padded[i, :length] = target.lstm(sequence)[0].detach().reshape(-1, 4)
    for t in range(5):  # the mean of the position, so that nothing is left of it when centred
        there = lengths > t
        padded[~there, t] = padded[there, t].mean(0)
    assert loss == pytest.approx(distance(padded, guide[0](x)), abs=1e-6)


def test_different_numbers_of_samples_raise_by_name(x):
    target = Pick(Layer(lambda x: x[: N // 2]), lambda output: output)
    with pytest.raises(ValueError, match=r"'layer' gave \(20, 6\) and guide layer '0' \(40, 5\)"):
        guided(target, mlp(6, 5, 3), x, pairs=[("layer", "0")])


def test_pairs_with_different_numbers_of_samples_raise_by_name():
    """Both networks put the positions of a sequence into the batch axis after the first layer."""
    x = torch.randn(N, 5, 6)
    target, guide = (
        nn.Sequential(nn.Linear(6, d), nn.Flatten(0, 1), nn.Linear(d, 3)) for d in (4, 5)
    )
    message = (
        r"'2' gave \(200, 3\) and guide layer '2' \(200, 3\), but target layer '0' gave "
        r"\(40, 5, 4\) and guide layer '0' \(40, 5, 5\): .* in every pair"
    )
    with pytest.raises(ValueError, match=message):
        guided(target, guide, x, pairs=[("0", "0"), ("2", "2")])
