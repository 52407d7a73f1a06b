"""Release and close: no hooks, no forward pass of the guide, no trace in the target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_training import Net, batch, train
from networks import hooks
from torch import nn

from pyguide.guidance import Guidance


def test_the_target_state_dict_is_untouched():
    target = Net(2, 12, seed=0)
    keys, modules = list(target.state_dict()), len(list(target.modules()))
    guidance = Guidance(target, Net(2, 9, seed=1))
    assert not isinstance(guidance, nn.Module)
    assert list(target.state_dict()) == keys
    assert len(list(target.modules())) == modules


def test_release_ends_all_cost():
    target, guide, guidance, calls = train(release_at=2, steps=5)
    assert calls.count == 2
    assert guidance.released
    assert guidance.steps == 5
    assert hooks(target) == hooks(guide) == 0
    with guidance.capture():
        target(batch()[0])
    loss = guidance.loss(batch()[0])
    assert loss.shape == ()
    assert loss.item() == 0
    assert not loss.requires_grad
    assert loss.device == next(target.parameters()).device
    assert guidance.log_dict() == {}


def test_released_device_is_the_targets():
    target, guide = nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta")
    assert Guidance(target, guide, release_at=0).loss(None).device.type == "meta"


def test_release_at_zero_is_plain_training():
    target, _, guidance, calls = train(release_at=0, steps=3)
    assert calls.count == 0
    assert guidance.released
    plain = Net(2, 12, seed=0)
    x, y = batch()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(3):
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(target.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_release_by_hand_between_capture_and_loss():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    with guidance.capture():
        target(x)
    guidance.release()
    assert guidance.loss(x).item() == 0
    assert hooks(target) == hooks(guide) == 0


def test_close_removes_every_hook():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    other = Guidance(target, guide, pairs=[("head", "head")])
    guidance = Guidance(target, guide)
    assert hooks(target) == 3 + 1
    guidance.close()
    assert hooks(target) == hooks(guide) == 1
    with pytest.raises(RuntimeError, match="closed"):
        guidance.loss(x)
    with pytest.raises(RuntimeError, match="closed"), guidance.capture():
        pass
    other.close()
    assert hooks(target) == hooks(guide) == 0
