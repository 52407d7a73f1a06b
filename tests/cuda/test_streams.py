"""Streams and devices: work is ordered on the caller's stream, on the layers' device."""

from __future__ import annotations

import pytest
import torch
from layers import related

import pyguide

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda", 0)
WAIT = 200_000_000  # clock cycles, about a tenth of a second


def step(layers):
    value = pyguide.cka(*layers)
    return [value, *torch.autograd.grad(value, layers)]


def warm_stream(layers) -> torch.cuda.Stream:
    """A stream whose kernels are loaded and whose memory is cached: allocation may wait."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(layers)
    torch.cuda.synchronize()
    return stream


def test_work_follows_what_the_side_stream_did_before():
    """Layers that a stream fills late are seen filled."""
    filled = related(128, 5000, 3000, device=DEVICE)
    expected = step([x.clone().requires_grad_() for x in filled])
    layers = [torch.zeros_like(x).requires_grad_() for x in filled]
    stream = warm_stream(layers)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(WAIT)
        with torch.no_grad():
            for x, values in zip(layers, filled, strict=True):
                x.copy_(values)
        got = step(layers)
        assert not stream.query()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_other_streams_are_not_waited_for():
    layers = [x.requires_grad_() for x in related(128, 5000, 3000, device=DEVICE)]
    busy, stream = torch.cuda.Stream(), warm_stream(layers)
    with torch.cuda.stream(busy):
        torch.cuda._sleep(10 * WAIT)
    with torch.cuda.stream(stream):
        step(layers)
    stream.synchronize()
    assert not busy.query()
    busy.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_on_another_device():
    other = torch.device("cuda", 1)
    expected = step([x.requires_grad_() for x in related(128, 500, 300, device=DEVICE)])
    assert torch.cuda.current_device() == 0
    got = step([x.requires_grad_() for x in related(128, 500, 300, device=other)])
    assert torch.cuda.current_device() == 0
    assert all(x.device == other for x in got)
    torch.testing.assert_close([x.to(DEVICE) for x in got], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_of_two_devices_are_refused():
    x, y = related(16, 8, 8)
    with pytest.raises(ValueError, match="all layers must be on one device"):
        pyguide.cka(x.to("cuda:0"), y.to("cuda:1"))
