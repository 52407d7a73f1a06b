"""The frozen guide: its modes, its inputs, and that it never changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from guided_training import Net, batch, step

from pyguide.guidance import Guidance


def test_the_guide_never_changes():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    guidance = Guidance(target, guide)
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    losses, modes = [], []
    guide.register_forward_pre_hook(
        lambda module, args: modes.append(
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
    )
    for _ in range(3):
        # A parent's train() and requires_grad_() reach a guide that is held beside the target.
        guide.train()
        guide.requires_grad_(True)
        losses.append(step(target, guidance, x, y, optimizer))
    assert losses[0] != losses[2]
    assert modes == [(False, False)] * 3
    assert not any(module.training for module in guide.modules())
    assert not any(p.requires_grad for p in guide.parameters())
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in guide.parameters())


def test_a_stale_gradient_does_not_change_the_guide():
    """An optimizer over a parent of both networks, and a guide that was trained before."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    F.cross_entropy(guide(x), y).backward()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    guidance = Guidance(target, guide, release_at=1)
    assert not guide.training
    for _ in range(2):
        assert not any(p.requires_grad for p in guide.parameters())
        assert all(p.grad is None for p in guide.parameters())
        step(target, guidance, x, y, optimizer)
        assert guidance.released
    assert not guide.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_that_reached_the_guide_is_dropped():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    guide.requires_grad_(True)
    F.cross_entropy(guide(x), y).backward()
    step(target, guidance, x, y)
    assert all(p.grad is None for p in guide.parameters())
