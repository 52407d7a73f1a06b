"""What torch.set_default_device says is not where pyguide's own host tensors are."""

from __future__ import annotations

import pytest
import torch
from cached_guides import FIRST, SAMPLES, guided, loss
from torch import nn

from pyguide.guidance import Guidance, GuideCache, LargeBatch, gaussian_noise


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def in_both(make, *inputs):
    """Losses of networks and a cache that are made, and used, with and without another default."""
    outcomes = []
    for device in ("cpu", "meta"):
        guidance = make()
        with torch.device(device):
            outcomes.append([guidance(*inputs) for _ in range(2)])
    assert outcomes[0][0].isfinite().all() and outcomes[0][0].device.type == "cpu"
    for expected, found in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", ["activations", "grams"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_guide_cache(keep, in_folder, data, tmp_path):
    folders = iter("ab")
    batches = torch.arange(SAMPLES).split(10)

    def make():
        folder = tmp_path / next(folders) if in_folder else None
        guidance = guided(GuideCache(folder, samples=SAMPLES, keep=keep))
        return lambda: torch.stack([loss(guidance, data, ids) for ids in batches])

    in_both(make)


@pytest.mark.parametrize(
    "options", [{}, {"distance": "rsa"}, {"distance": "ridge"}, {"guide_transform": gaussian_noise}]
)
def test_a_guided_step(options, data):
    def make():
        own = {k: v(0) if callable(v) else v for k, v in options.items()}
        guidance = guided(**own)
        return lambda: loss(guidance, data, FIRST)

    in_both(make)


def test_a_calibrated_guide(data):
    def make():
        guide = nn.Sequential(nn.Linear(6, 11), nn.BatchNorm1d(11), nn.Linear(11, 3)).double()
        torch.manual_seed(0)
        nn.init.normal_(guide[0].weight)
        guidance = guided(guide=guide, pairs=[("0", "1")], guide_mode="calibrated")
        return lambda: loss(guidance, data, FIRST)[1:]

    in_both(make)


def test_a_large_batch(data):
    def make():
        large = LargeBatch(guided(), chunk_size=7)
        target = large.guidance.target
        return lambda: large.backward(lambda x: target(x).square().mean(), data).total

    in_both(make)


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

    in_both(make)
