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
