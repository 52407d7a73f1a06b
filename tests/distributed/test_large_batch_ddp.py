"""LargeBatch under DistributedDataParallel in two processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_blocks import batch, blocks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from pyguide.guidance import Guidance, LargeBatch

CHUNK = 12
SIZES = 58, 36  # samples of the two ranks: 5 chunks and 3

pytestmark = pytest.mark.filterwarnings("ignore:the target has BatchNorm")


def own_batch(rank, k):
    return batch(SIZES[rank], seed=10 * rank + k)


def networks():
    return blocks(12, seed=0), blocks(9, seed=1)


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
    target, guide = networks()
    model = nn.parallel.DistributedDataParallel(target)
    reduced = []

    def recording(group, bucket):
        reduced.append(bucket.index())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, recording)
    guidance = Guidance(model, guide, align_only=align_only, process_group="local")
    left = []
    for k in range(2):
        reduced.clear()
        step(guidance, *own_batch(rank, k), seed=rank)
        guidance.step()
        left.append((*taken(target), list(reduced)))
    return left


@pytest.mark.parametrize("align_only", [0, 1])
def test_gradients_are_the_mean_of_the_processes_own_and_reduced_once(align_only, worlds):
    ranks = worlds[2].run(two_steps, align_only)
    target, guide = networks()
    guidance = Guidance(target, guide, align_only=align_only)
    for k in range(2):
        # DistributedDataParallel starts a step with the buffers of rank 0 everywhere.
        start = {name: value.clone() for name, value in target.state_dict().items()}
        own = {}
        for rank in (1, 0):
            target.load_state_dict(start)
            step(guidance, *own_batch(rank, k), seed=rank)
            own[rank], buffers = taken(target)
            torch.testing.assert_close(ranks[rank][k][1], buffers)
        mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
        for rank in range(2):
            gradients, _, reduced = ranks[rank][k]
            torch.testing.assert_close(gradients, mean, rtol=1e-9, atol=1e-13)
            assert reduced == [0]
        guidance.step()


def step_of_half(rank):
    """A rank's half of a batch, compared with the other's."""
    target, guide = (model.eval() for model in networks())
    guidance = Guidance(nn.parallel.DistributedDataParallel(target), guide)
    x, y = batch(80, seed=3)
    step(guidance, x.chunk(2)[rank], y.chunk(2)[rank], seed=0)
    return taken(target)[0], guidance.last


def test_by_default_the_global_batch_is_compared(worlds):
    target, guide = (model.eval() for model in networks())
    guidance = Guidance(target, guide)
    step(guidance, *batch(80, seed=3), seed=0)
    expected = taken(target)[0]
    for gradients, distances in worlds[2].run(step_of_half):
        torch.testing.assert_close(distances, guidance.last)
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-13)
