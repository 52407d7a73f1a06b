"""What is captured has a gradient, or an error says why not."""

from __future__ import annotations

import pytest
import torch
from networks import distance, guided, mlp
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from pyguide.guidance import Guidance


class _Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.block = mlp(6, 8, 7, 7)
        self.last = nn.Linear(7, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        if self.use_reentrant is None:
            return self.last(self.block(x))
        return self.last(checkpoint(self.block, x, use_reentrant=self.use_reentrant))


def test_checkpointing_on_equals_off(x):
    gradients = []
    for use_reentrant in (None, False):
        target = _Checkpointed(use_reentrant)
        guidance = Guidance(target, mlp(6, 5, 3, seed=1), pairs=[("block.0", "0")])
        with guidance.capture():
            logits = target(x)
        (logits.square().mean() + guidance.loss(x)).backward()
        gradients.append([p.grad for p in target.parameters()])
    for off, on in zip(*gradients, strict=True):
        torch.testing.assert_close(on, off)
    assert gradients[0][0].norm() > 1e-4


def test_reentrant_checkpointing_raises(x):
    target = _Checkpointed(use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"'block\.0' of the target has no gradient.*reentrant"):
        guided(target, mlp(6, 5, 3), x.requires_grad_(), pairs=[("block.0", "0")])


def test_a_checkpoint_wrapper_can_be_paired_as_a_whole(x):
    linear = nn.Linear(6, 8)
    wrapped = checkpoint_wrapper(linear, checkpoint_impl=CheckpointImpl.REENTRANT)
    guide = mlp(6, 5, 3)
    guidance = Guidance(nn.Sequential(wrapped, nn.Linear(8, 3)), guide, pairs=[("0", "0")])
    with guidance.capture():
        guidance.target(x.requires_grad_())
    loss = guidance.loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(distance(linear(x), guide[0](x)), abs=1e-6)
    assert linear.weight.grad.norm() > 1e-4


def test_frozen_layers_raise_with_the_remedy(x):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3, seed=1)
    target[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"'0' of the target.*frozen.*pairs as a list"):
        guided(target, guide, x)
    loss = guided(target, guide, x, pairs=[("2", "2")])
    assert loss == pytest.approx(distance(target[:3](x), guide[:3](x)), abs=1e-6)


def test_no_gradient_raises_only_while_grad_is_enabled(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    with guidance.capture(), torch.no_grad():
        target(x)
    with pytest.raises(RuntimeError, match="no_grad"):
        guidance.loss(x)
    expected = distance(target[0](x), guide[0](x))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            with guidance.capture():
                target(x)
            loss = guidance.loss(x)
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    target.requires_grad_(False)
    with guidance.capture():
        target(x)
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)
