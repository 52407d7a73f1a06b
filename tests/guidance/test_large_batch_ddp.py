"""LargeBatch under DistributedDataParallel in two processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_training import Net
from processes import on_each_rank
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from pyguide.guidance import Guidance, LargeBatch

CHUNK = 12
SIZES = 58, 36  # samples of the two ranks: 5 chunks and 3

pytestmark = pytest.mark.filterwarnings("ignore:the target has BatchNorm")


def batch(rank, step):
    generator = torch.Generator().manual_seed(10 * rank + step)
    n = SIZES[rank]
    x = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=generator)


def networks(dropout):
    return Net(2, 12, seed=0, dropout=dropout).double(), Net(2, 9, seed=1).double()


def step(guidance, x, y, seed):
    torch.manual_seed(seed)
    LargeBatch(guidance, CHUNK).backward(lambda x, y: F.cross_entropy(guidance.target(x), y), x, y)


def taken(target):
    """Gradients, which are dropped, and buffers."""
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in target.named_parameters()
    }
    target.zero_grad()
    return gradients, {name: buffer.clone() for name, buffer in target.named_buffers()}


def two_steps(rank, align_only):
    """What each of two steps leaves, and which gradient buckets it reduced."""
    target, guide = networks(dropout=0.3)
    model = nn.parallel.DistributedDataParallel(target)
    reduced = []

    def recording(group, bucket):
        reduced.append(bucket.index())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, recording)
    guidance = Guidance(model, guide, align_only=align_only)
    left = []
    for k in range(2):
        reduced.clear()
        step(guidance, *batch(rank, k), seed=rank)
        guidance.step()
        left.append((*taken(target), list(reduced)))
    return left


@pytest.mark.parametrize("align_only", [0, 1])
def test_gradients_are_the_mean_of_the_processes_own_and_reduced_once(align_only, tmp_path):
    ranks = on_each_rank(two_steps, tmp_path, align_only)
    target, guide = networks(dropout=0.3)
    guidance = Guidance(target, guide, align_only=align_only)
    for k in range(2):
        # DistributedDataParallel starts a step with the buffers of rank 0 everywhere.
        start = {name: value.clone() for name, value in target.state_dict().items()}
        own = {}
        for rank in (1, 0):
            target.load_state_dict(start)
            step(guidance, *batch(rank, k), seed=rank)
            own[rank], buffers = taken(target)
            torch.testing.assert_close(ranks[rank][k][1], buffers)
        mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
        for rank in range(2):
            gradients, _, reduced = ranks[rank][k]
            torch.testing.assert_close(gradients, mean, rtol=1e-9, atol=1e-13)
            assert reduced == [0]
        guidance.step()
