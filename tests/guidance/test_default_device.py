"""What torch.set_default_device says is not where pyguide's own host tensors are."""

from __future__ import annotations

import pytest
import torch
from cached_guides import FIRST, SAMPLES, guided, loss
from torch import nn
from torch.testing import assert_close

from pyguide.guidance import Guidance, GuideCache, LargeBatch, gaussian_noise


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def in_both(make):
    """Two steps of what is made afresh, (2, ...): with CPUs as the default device, and another."""
    outcomes = []
    for device in ("cpu", "meta"):
        step = make()
        with torch.device(device):
            first, second = step(), step()
        outcomes.append(torch.stack([first, second]))
    assert outcomes[0].isfinite().all() and outcomes[0].device.type == "cpu"
    return outcomes


@pytest.mark.parametrize("keep", ["activations", "grams"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_guide_cache(keep, in_folder, data, tmp_path):
    folders = iter("ab")
    batches = torch.arange(SAMPLES).split(10)

    def make():
        folder = tmp_path / next(folders) if in_folder else None
        guidance = guided(GuideCache(folder, samples=SAMPLES, keep=keep))
        return lambda: torch.stack([loss(guidance, data, ids) for ids in batches])

    assert_close(*in_both(make), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"distance": "rsa"}, {"distance": "ridge"}, {"guide_transform": gaussian_noise}]
)
def test_a_guided_step(options, data):
    def make():
        own = {k: v(0) if callable(v) else v for k, v in options.items()}
        guidance = guided(**own)
        return lambda: loss(guidance, data, FIRST)

    assert_close(*in_both(make), rtol=1e-9, atol=1e-12)


def test_a_calibrated_guide(data):
    def make():
        guide = nn.Sequential(nn.Linear(6, 11), nn.BatchNorm1d(11), nn.Linear(11, 3)).double()
        torch.manual_seed(0)
        nn.init.normal_(guide[0].weight)
        guidance = guided(guide=guide, pairs=[("0", "1")], guide_mode="calibrated")
        return lambda: loss(guidance, data, FIRST)[1:]

    assert_close(*in_both(make), rtol=1e-9, atol=1e-12)


def test_a_large_batch(data):
    def make():
        large = LargeBatch(guided(), chunk_size=7)
        target = large.guidance.target
        return lambda: large.backward(lambda x: target(x).square().mean(), data).total

    assert_close(*in_both(make), rtol=1e-9, atol=1e-12)


def test_padded_and_nested_sequences():
    x = torch.randn(20, 5, 6)
    lengths = torch.arange(20) % 5 + 1
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    padding = torch.arange(5) >= lengths[:, None]

    def make():
        torch.manual_seed(0)
        target = nn.Sequential(nn.LSTM(6, 4, batch_first=True))
        guidance = Guidance(target, encoder, [("0", "layers.0")])

        def step():
            with guidance.capture():
                target(packed)
            inputs = {"src": x, "src_key_padding_mask": padding}
            return guidance.loss(packed, guide_inputs=inputs).detach()

        return step

    assert_close(*in_both(make), rtol=1e-9, atol=1e-12)
