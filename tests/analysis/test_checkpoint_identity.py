"""Which comparison a checkpoint is of: the same one goes on, another is refused."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from pyguide.analysis import checkpoint, compare_networks


def _net(width: int) -> nn.Sequential:
    layers = {
        "conv": nn.Conv2d(2, width, 3, padding=1),
        "norm": nn.BatchNorm2d(width),
        "relu": nn.ReLU(inplace=True),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(16 * width, 3),
    }
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(70, 2, 4, 4)


class Interrupted(Exception):
    pass


def _interrupted(batches, after: int):
    yield from batches[:after]
    raise Interrupted


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    return tmp_path / "sums.pt"


def test_an_interrupted_comparison_goes_on(images, file):
    first, second = _net(5), _net(3)
    batches = images.split(20)
    whole = compare_networks(first, second, batches)
    with pytest.raises(Interrupted):
        compare_networks(first, second, _interrupted(batches, 2), checkpoint=file)
    calls = []
    first.register_forward_hook(lambda *args: calls.append(args))
    found = compare_networks(first, second, batches, checkpoint=file)
    assert torch.equal(found.values, whole.values)
    assert (found.samples, found.batches) == (whole.samples, whole.batches)
    assert len(calls) == 3  # the first batch again, for its layers, and the two that were left
    assert not file.exists()


def test_a_checkpoint_of_another_networks_layer_is_refused(images, file):
    """One layer with itself has CKA 1 in every network."""
    with pytest.raises(Interrupted):
        compare_networks(
            _net(5), None, _interrupted(images.split(20), 2), layers="conv", checkpoint=file
        )
    other = _net(5)
    torch.nn.init.normal_(other.conv.weight, std=3.0)
    with pytest.raises(ValueError, match="the first batch has other similarities"):
        compare_networks(other, data=images.split(20), layers="conv", checkpoint=file)


def test_a_checkpoint_of_something_else_is_refused(images, file):
    net, batches = _net(5), images.split(20)
    with pytest.raises(Interrupted):
        compare_networks(net, None, _interrupted(batches, 2), checkpoint=file)
    for other, options, message in [
        (net, {"data": images.split(30)}, "batch 1 has 30 samples, it had 20"),
        (net, {"layers": "conv"}, "the layers of its rows were"),
        (net, {"debiased": False}, "the state has debiased=True"),
        (_net(5), {}, "the first batch has other similarities"),
        (net, {"data": images.flip(0).split(20)}, "the first batch has other similarities|batch 1"),
        (net, {"data": batches[:1]}, "there were 1 batches, it counted 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare_networks(other, **{"data": batches, "checkpoint": file, **options})
        assert file.exists()


def test_a_file_that_is_no_checkpoint_says_so(images, file):
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"is damaged: .* remove it to begin again"):
        compare_networks(_net(3), data=[images], checkpoint=file)
    torch.save(_net(3).state_dict(), file)
    with pytest.raises(ValueError, match="is no checkpoint of compare_networks"):
        compare_networks(_net(3), data=[images], checkpoint=file)


def test_without_an_interruption_a_checkpoint_changes_nothing(images, file):
    net = _net(5)
    with_file = compare_networks(net, data=images.split(20), checkpoint=file)
    assert torch.equal(with_file.values, compare_networks(net, data=images.split(20)).values)
    assert not file.exists()
