"""Guidance of a target that torch.distributed.fsdp.fully_shard has sharded."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from guided_blocks import batch, blocks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyguide import list_layers
from pyguide.guidance import Guidance, LargeBatch

N, CHUNK = 48, 18
SHARDED = "before", "after"
OPTIONS = {
    "even": {},
    # Outputs of whole units of sharding, and of a layer that is one.
    "units": {"pairs": [("0", "0"), ("1.0", "1"), ("1", "1")]},
    "align_only": {"align_only": 1, "pairs": "paper"},
}


class Reductions(TorchDispatchMode):
    """Counts how often gradients are reduced."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._overloadpacket is torch.ops.c10d._reduce_scatter_base_
        return function(*args, **kwargs or {})


def networks():
    return blocks(12, seed=0), blocks(9, seed=1)


def shard(target):
    """Each block, a layer in one of them, and the rest."""
    for module in (target[1][0], target[0], target[1], target):
        fully_shard(module, reshard_after_forward=True)


def whole(p):
    """A copy of a parameter's gradient, from the shards of both ranks."""
    gradient = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    return torch.zeros(p.shape, dtype=p.dtype) if gradient is None else gradient.clone()


def step(target, guidance, x, y, **options):
    with guidance.capture():
        logits = target(x)
    guidance.total_loss(F.cross_entropy(logits, y), x, **options).backward()


def train(sharded, large, options):
    """Two steps: gradients, how often they moved, pairs, their values, names of parameters."""
    x, y = batch(N, seed=7)
    target, guide = networks()
    if sharded == "before":
        shard(target)
    guidance = Guidance(target, guide, process_group="local", **OPTIONS[options])
    if sharded == "after":
        shard(target)
    assert all(isinstance(p, DTensor) == bool(sharded) for p in target.parameters())
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    steps = []
    for k in range(2):
        torch.manual_seed(k)
        with Reductions() as reductions:
            if large:
                task = lambda x, y: F.cross_entropy(target(x), y)  # noqa: E731
                LargeBatch(guidance, CHUNK).backward(task, x, y)
            else:
                step(target, guidance, x, y)
            guidance.step()
        gradients = {name: whole(p) for name, p in target.named_parameters()}
        steps.append((gradients, reductions.count))
        optimizer.step()
        optimizer.zero_grad()
    return steps, guidance.pairs, guidance.last, list(target.state_dict())


VARIANTS = list(itertools.product(SHARDED, (False, True), OPTIONS))


def compared_together(rank, large):
    """Gradients where each rank has half of a batch; without one, those of the whole."""
    target, guide = (model.eval() for model in networks())
    x, y = batch(80, seed=3)
    if rank is not None:
        shard(target)
        x, y = x.chunk(2)[rank], y.chunk(2)[rank]
    guidance = Guidance(target, guide)
    if large:
        LargeBatch(guidance, CHUNK).backward(lambda x, y: F.cross_entropy(target(x), y), x, y)
    else:
        step(target, guidance, x, y)
    return {name: whole(p) for name, p in target.named_parameters()}


def on_rank(rank):
    return {
        **{variant: train(*variant) for variant in VARIANTS},
        "refused": refused(),
        "together": [compared_together(rank, large) for large in (False, True)],
    }


@pytest.fixture(scope="module")
def of_ranks(worlds):
    return worlds[2].run(on_rank)


@pytest.mark.filterwarnings("ignore:the target has BatchNorm")
@pytest.mark.parametrize(("sharded", "large", "options"), VARIANTS)
def test_gradients_are_those_of_one_process(sharded, large, options, of_ranks):
    expected, *rest = train(None, large, options)
    for rank in of_ranks:
        steps, pairs, last, names = rank[sharded, large, options]
        assert [pairs, names] == [rest[0], rest[2]]
        torch.testing.assert_close(last, rest[1])
        for (gradients, reductions), (one_process, _) in zip(steps, expected, strict=True):
            torch.testing.assert_close(gradients, one_process, rtol=1e-9, atol=1e-12)
            assert reductions == 4  # one a unit, also with three chunks


def test_by_default_the_global_batch_is_compared(of_ranks):
    expected = compared_together(None, large=False)
    for rank in of_ranks:
        for gradients in rank["together"]:
            torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-13)


def refused():
    """What list_layers finds in a sharded target, and the error of its gradient norms."""
    target, guide = networks()
    shard(target)
    x, y = batch(N, seed=7)
    names = [(layer.path, layer.type) for layer in list_layers(target, x)]
    try:
        step(target, Guidance(target, guide), x, y, grad_norms=True)
    except ValueError as error:
        return names, str(error)


def test_layers_have_their_own_class_and_gradient_norms_are_refused(of_ranks):
    target, _ = networks()
    expected = [(layer.path, layer.type) for layer in list_layers(target, batch(N, seed=7)[0])]
    for names, error in (rank["refused"] for rank in of_ranks):
        assert names == expected
        assert "grad_norms" in error and "fully_shard" in error
