"""Networks over tokens: what an output depends on, and what it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.splits import Splits
from pyguide.experiments import copy_paste, language_model
from pyguide.experiments.networks import (
    RNN,
    CausalTransformer,
    RNNClassifier,
    TransformerClassifier,
)
from pyguide.experiments.networks.transformer import sinusoids

VOCABULARY = CopyPaste(1, 1).vocabulary
T = 9
SCALES = [
    (module.EXPERIMENT.name, scale, setting)
    for module in (copy_paste, language_model)
    for scale, setting in module.EXPERIMENT.scales.items()
]
CAUSAL = [
    pytest.param(setting, network, id=f"{name}-{scale}-{network}")
    for name, scale, setting in SCALES
    for network in ("target", "guide")
]


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def made(setting, network):
    """A network of a scale at its depth, with few features."""
    config = replace(setting.config, width=8, guide_width=8, heads=2)
    model = getattr(setting, network)(config, Splits(None, None, None, classes=VOCABULARY))
    return without_dropout(model)


def tokens(n=3, length=T, below=VOCABULARY):
    return torch.randint(below, (n, length))


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize(("setting", "network"), CAUSAL)
def test_a_later_token_moves_no_earlier_output(setting, network, mode):
    model = made(setting, network).train(mode == "train")
    x = tokens()
    # Without gradients torch takes another path through a Transformer's block.
    with torch.inference_mode(mode == "inference"):
        before = model(x)
        for t in range(T):
            changed = x.clone()
            changed[:, t] = (changed[:, t] + 1) % VOCABULARY
            after = model(changed)
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
            # Its own output and the next ones; in an RNN what is far away fades.
            moved = (after - before).abs().amax(dim=2)[:, t : t + 3]
            assert moved.min() > 1e-5


@pytest.mark.parametrize(("setting", "network"), CAUSAL)
def test_an_output_is_that_of_the_sequence_cut_after_it(setting, network):
    model = made(setting, network).eval()
    x = tokens()
    whole = model(x)
    for t in range(1, T):
        torch.testing.assert_close(model(x[:, :t]), whole[:, :t], rtol=0, atol=1e-6)
    torch.testing.assert_close(model(x[:1]), whole[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("setting", "network"), CAUSAL)
def test_layers_are_as_many_as_said_and_have_weights_of_their_own(setting, network):
    model = made(setting, network)
    depth = setting.config.layers if network == "target" else setting.config.guide_layers
    assert len(model.layers) == depth
    weights = [dict(layer.named_parameters()) for layer in model.layers]
    for i, first in enumerate(weights):
        for second in weights[:i]:
            assert not {id(p) for p in first.values()} & {id(p) for p in second.values()}
            for name, p in first.items():
                # Copies of one block start equal; biases and norms do in any case.
                assert p.dim() == 1 or not torch.equal(p, second[name])
    model(tokens()).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for layer in weights for p in layer.values())


def test_the_layers_of_the_rnn_are_those_of_torch():
    model = RNN(VOCABULARY, 10, width=6, layers=3)
    stacked = nn.RNN(6, 6, num_layers=3, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            for name, p in layer.named_parameters():
                getattr(stacked, name.replace("l0", f"l{i}")).copy_(p)
    x = tokens()
    expected = model.head(stacked(model.embedding(x))[0])
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("width", [2, 10])
def test_sinusoids_by_a_loop(width):
    table = sinusoids(60, width)
    assert table.shape == (60, width)
    for p in range(60):
        for i in range(width // 2):
            angle = p / 10000 ** (2 * i / width)
            expected = [math.sin(angle), math.cos(angle)]
            assert table[p, 2 * i : 2 * i + 2].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: CausalTransformer(5, 5, width=8, layers=2, heads=2),
        lambda: TransformerClassifier(5, 5, width=8, layers=2, heads=2, padding=4),
    ],
)
def test_transformers_know_positions_and_have_dropout(model):
    model = model()
    x = torch.tensor([[0, 1, 2, 0, 1, 2]])
    one = model(x)
    assert not torch.equal(one, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    last = [model(value).flatten()[-5:] for value in (x, swapped)]
    assert (last[0] - last[1]).abs().max() > 1e-3


CLASSIFIERS = [
    lambda: RNNClassifier(3, 2, width=8, layers=2, padding=2),
    lambda: TransformerClassifier(3, 2, width=8, layers=2, heads=2, padding=2, feed_forward=16),
]


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("build", CLASSIFIERS, ids=["rnn", "transformer"])
def test_padding_moves_no_output(build, mode):
    model = without_dropout(build()).train(mode == "train")
    lengths = torch.tensor([1, 3, 5, 5])
    x = torch.where(torch.arange(5) < lengths[:, None], tokens(4, 5, below=2), 2)
    with torch.inference_mode(mode == "inference"):
        expected = model(x)
        assert expected.shape == (4, 2) and expected.isfinite().all()
        for more in (1, 7):
            padded = nn.functional.pad(x, (0, more), value=2)
            torch.testing.assert_close(model(padded), expected, rtol=0, atol=1e-6)
        for row, length, logits in zip(x, lengths, expected, strict=True):
            torch.testing.assert_close(model(row[None, :length])[0], logits, rtol=0, atol=1e-6)
        # A bit more is no padding.
        longer = model(nn.functional.pad(x[2:], (0, 1), value=1))
        assert (longer - expected[2:]).abs().min() > 1e-4


@pytest.mark.parametrize("build", CLASSIFIERS, ids=["rnn", "transformer"])
def test_every_token_before_the_padding_counts(build):
    model = without_dropout(build()).eval()
    x = torch.tensor([[0, 1, 0, 1, 2, 2]])
    before = model(x)
    for t in range(4):
        changed = x.clone()
        changed[0, t] = 1 - changed[0, t]
        assert (model(changed) - before).abs().max() > 1e-5


def test_the_recurrent_classifier_reads_the_last_token_before_the_padding():
    model = RNNClassifier(3, 2, width=8, layers=2, padding=2)
    x = torch.tensor([[0, 1, 1, 2], [1, 0, 1, 1], [1, 2, 2, 2]])
    outputs = model.features(x)
    expected = torch.stack([outputs[0, 2], outputs[1, 3], outputs[2, 0]])
    torch.testing.assert_close(model(x), model.head(expected))
