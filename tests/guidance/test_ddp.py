"""Guidance under DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch
from guided_training import Net, batch, step
from torch import nn

from pyguide.guidance import Guidance


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class _Parent(nn.Module):
    """Holds the target, and the guide beside it."""

    def __init__(self, target: nn.Module, guide: nn.Module):
        super().__init__()
        self.target, self.guide = target, guide

    def forward(self, x):
        return self.target(x)


@pytest.mark.parametrize("find_unused_parameters", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_ddp_gives_the_same_gradient(find_unused_parameters, held, process_group):
    x, y = batch()
    gradients = []
    for distributed in (False, True):
        target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
        model = target
        if held:
            model, guidance = _Parent(target, guide), Guidance(target, guide)
        if distributed:
            model = nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=find_unused_parameters
            )
        if not held:
            guidance = Guidance(model, guide)
        for _ in range(2):  # DDP says in the second pass what went wrong in the first.
            step(model, guidance, x, y)
        gradients.append([p.grad for p in target.parameters()])
        assert len(guidance.pairs) == 2
    for alone, ddp in zip(*gradients, strict=True):
        torch.testing.assert_close(ddp, alone)


@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_ddp_in_and_after_the_align_only_phase(find_unused_parameters, process_group):
    """DDP waits for every parameter's gradient, also where only guidance trains."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    model = nn.parallel.DistributedDataParallel(
        target, find_unused_parameters=find_unused_parameters
    )
    guidance = Guidance(model, guide, align_only=2)
    alone = Guidance(Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1))
    with alone.capture():
        alone.target(x)
    alone.loss(x).backward()
    for i in range(4):
        target.zero_grad()
        step(model, guidance, x, y)
        for p, expected in zip(target.parameters(), alone.target.parameters(), strict=True):
            if i < 2:
                zero = torch.zeros_like(p)
                gradient = zero if expected.grad is None else expected.grad
                torch.testing.assert_close(p.grad, gradient)
    assert target.head.weight.grad.norm() > 1e-3


def test_gradient_norms_do_not_disturb_ddp(process_group):
    x, y = batch()
    gradients = []
    for grad_norms in (False, True):
        target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
        model = nn.parallel.DistributedDataParallel(target)
        guidance = Guidance(model, guide)
        for _ in range(2):
            step(model, guidance, x, y, grad_norms=grad_norms)
        gradients.append([p.grad for p in target.parameters()])
    for without, with_norms in zip(*gradients, strict=True):
        assert torch.equal(with_norms, without)
