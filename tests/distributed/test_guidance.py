"""Guided training in several processes is that of one process with the whole batch."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pyguide.guidance import Guidance, LargeBatch, Pair

N = 12  # samples a process


class Sequences(nn.Module):
    """Embeds and mixes sequences (n, T), without a BatchNorm, whose batch is the process's own."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(3, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        h = torch.tanh(self.mix(torch.tanh(self.embed(x))))
        return self.head(h.mean(1))


class Dense(nn.Module):
    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        widths = [6, width, width, width]
        self.blocks = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def data(processes: int, steps: int = 1, sizes: list[int] | None = None) -> list[Any]:
    """Batches of the whole, every process's samples of another distribution."""
    generator = torch.Generator().manual_seed(9)
    sizes = sizes or [N] * processes
    batches = []
    for _ in range(steps):
        x = [
            torch.randn(n, 6, generator=generator, dtype=torch.float64) * (1 + r) + 3 * r
            for r, n in enumerate(sizes)
        ]
        y = [torch.randint(4, (n,), generator=generator) for n in sizes]
        batches.append((x, y))
    return batches


def own(batch: Any, rank: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch
    return (torch.cat(x), torch.cat(y)) if rank is None else (x[rank], y[rank])


def parameters(model: nn.Module) -> list[torch.Tensor]:
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return [p.detach().clone() for p in whole]


def wrapped(target: nn.Module, wrapper: str) -> nn.Module:
    """By FSDP2, or by DistributedDataParallel with an option."""
    if wrapper == "fully_shard":
        for block in target.blocks:
            fully_shard(block)
        return fully_shard(target)
    return DistributedDataParallel(target, **({wrapper: True} if wrapper else {}))


def train(
    rank: int | None, processes: int, steps: int, options: dict[str, Any], wrapper: str = ""
) -> Any:
    """The parameters after some steps, and the losses; rank None is one process with all."""
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    model = target if rank is None else wrapped(target, wrapper)
    guidance = Guidance(model, guide, **options)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for batch in data(processes, steps):
        x, y = own(batch, rank)
        with guidance.capture():
            logits = model(x)
        loss = guidance.total_loss(F.cross_entropy(logits, y), x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
        losses.append(guidance.log_dict().get("guidance/loss", torch.zeros(())))
    guidance.close()
    return parameters(target), torch.stack([loss.double() for loss in losses])


def check(results: list[Any], expected: Any, rtol: float = 1e-7) -> None:
    for result in results:
        for p, q in zip(result[0], expected[0], strict=True):
            torch.testing.assert_close(p, q, rtol=rtol, atol=1e-10)
        torch.testing.assert_close(result[1], expected[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{}, {"release_at": 2}, {"align_only": 2}, {"distance": "debiased_cka", "pairs": "last:2"}],
    ids=str,
)
def test_training_is_that_of_one_process(options, world):
    results = world.run(train, world.size, 4, options)
    check(results, train(None, world.size, 4, options))


def train_wrapped(rank: int, wrapper: str, options: dict[str, Any]) -> Any:
    return train(rank, 2, 4, options, wrapper)


@pytest.mark.parametrize("options", [{}, {"release_at": 2}, {"align_only": 2}], ids=str)
@pytest.mark.parametrize("wrapper", ["static_graph", "find_unused_parameters", "fully_shard"])
def test_wrappers_of_the_target(wrapper, options, worlds):
    check(worlds[2].run(train_wrapped, wrapper, options), train(None, 2, 4, options))


def train_in_groups(rank: int) -> Any:
    """Processes 0 and 1 are one group, 2 and 3 another, each with its own batch."""
    groups = [torch.distributed.new_group([first, first + 1]) for first in (0, 2)]
    sizes = [5, 9, 12, 4]
    own_group = groups[rank // 2]
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    guidance = Guidance(target, guide, process_group=own_group)
    (batch,) = data(4, sizes=sizes)
    x, _ = own(batch, rank)
    with guidance.capture():
        logits = target(x)
    loss = guidance.loss(x) + 0.0 * logits.sum()
    loss.backward()
    guidance.close()
    for p in target.parameters():
        torch.distributed.all_reduce(p.grad, group=own_group)
    return [p.grad / 2 for p in target.parameters()], loss.detach()


def test_groups_compare_their_own_batches(worlds):
    results = worlds[4].run(train_in_groups)
    (x, _), *_ = data(4, sizes=[5, 9, 12, 4])
    for group in (0, 1):
        expected = _gradient_of(torch.cat(x[2 * group : 2 * group + 2]))
        check(results[2 * group : 2 * group + 2], expected)


def gradient(rank: int | None, sizes: list[int], options: dict[str, Any]) -> Any:
    """Of the guidance term alone."""
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    model = target if rank is None else DistributedDataParallel(target)
    guidance = Guidance(model, guide, **options)
    (batch,) = data(len(sizes), sizes=sizes)
    x, _ = own(batch, rank)
    with guidance.capture():
        logits = model(x)
    loss = guidance.loss(x) + 0.0 * logits.sum()
    loss.backward()
    guidance.close()
    return [p.grad for p in target.parameters()], loss.detach()


def test_uneven_batches(worlds):
    sizes = [7, 1, 12]
    check(worlds[3].run(gradient, sizes, {}), gradient(None, sizes, {}))


def test_local_batches_give_the_mean_of_the_processes_gradients(worlds):
    results = worlds[2].run(gradient, [N, N], {"process_group": "local"})
    alone = [_own_gradient(rank) for rank in range(2)]
    for p, *each in zip(results[0][0], *(a[0] for a in alone), strict=True):
        torch.testing.assert_close(p, torch.stack(each).mean(0))
    whole = gradient(None, [N, N], {})
    assert (results[0][1] - whole[1]).abs() > 1e-3


def _own_gradient(rank: int) -> Any:
    return _gradient_of(own(data(2)[0], rank)[0])


def _gradient_of(x: torch.Tensor) -> Any:
    """In one process."""
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    guidance = Guidance(target, guide)
    with guidance.capture():
        logits = target(x)
    loss = guidance.loss(x) + 0.0 * logits.sum()
    loss.backward()
    return [p.grad for p in target.parameters()], loss.detach()


def accumulated(rank: int | None, processes: int) -> Any:
    """Two micro-batches, whose gradients are averaged between processes once."""
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    model = target if rank is None else DistributedDataParallel(target)
    guidance = Guidance(model, guide)
    losses = []
    for i, batch in enumerate(data(processes, 2)):
        x, y = own(batch, rank)
        wait = rank is not None and i == 0
        with model.no_sync() if wait else contextlib.nullcontext():
            with guidance.capture():
                logits = model(x)
            loss = guidance.total_loss(F.cross_entropy(logits, y), x) / 2
            loss.backward()
        losses.append(guidance.log_dict()["guidance/loss"])
    guidance.close()
    return [p.grad for p in target.parameters()], torch.stack(losses)


def test_accumulation(worlds):
    check(worlds[3].run(accumulated, 3), accumulated(None, 3))


def in_chunks(rank: int | None, processes: int, chunk: int) -> Any:
    target, guide = Dense(20, seed=0).double(), Dense(9, seed=1).double()
    model = target if rank is None else DistributedDataParallel(target)
    guidance = Guidance(model, guide, pairs=[("blocks.0", "blocks.1"), ("blocks.2", "blocks.1")])
    x, y = own(data(processes)[0], rank)
    large = LargeBatch(guidance, chunk_size=chunk)
    losses = large.backward(lambda x, y: F.cross_entropy(model(x), y), x, y)
    guidance.close()
    return [p.grad for p in target.parameters()], losses.guidance


@pytest.mark.parametrize("chunk", [5, 100])
def test_large_batches(chunk, worlds):
    check(worlds[2].run(in_chunks, 2, chunk), in_chunks(None, 2, 100))


PADDED = {
    "whole": [Pair("mix", "embed")],
    "per token": [Pair("mix", "embed", per_token=True)],
    "both": [Pair("mix", "embed", per_token=True), Pair("embed", "mix")],
}


def padded(rank: int | None, processes: int, pairs: str, masked: bool) -> Any:
    """Sequences of a process's own longest length."""
    target, guide = Sequences(8, seed=0).double(), Sequences(5, seed=1).double()
    model = target if rank is None else DistributedDataParallel(target)
    guidance = Guidance(model, guide, PADDED[pairs], distance="debiased_cka")
    generator = torch.Generator().manual_seed(2)
    longest = [4 + r if masked else 4 for r in range(processes)]
    xs = [torch.randn(N, t, 3, generator=generator, dtype=torch.float64) for t in longest]
    masks = [torch.rand(N, t, generator=generator) < 0.8 for t in longest]
    if rank is None:
        most = max(longest)
        x = torch.cat([F.pad(x, (0, 0, 0, most - x.size(1))) for x in xs])
        mask = torch.cat([F.pad(mask, (0, most - mask.size(1))) for mask in masks])
    else:
        x, mask = xs[rank], masks[rank]
    with guidance.capture():
        logits = model(x)
    loss = guidance.loss(x, mask=mask if masked else None) + 0.0 * logits.sum()
    loss.backward()
    guidance.close()
    return [p.grad for p in target.parameters()], loss.detach()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairs", PADDED)
def test_sequences(pairs, masked, worlds):
    check(worlds[2].run(padded, 2, pairs, masked), padded(None, 2, pairs, masked))


def no_gradient(rank: int, processes: int) -> Any:
    guidance = Guidance(Dense(20, seed=0).double(), Dense(9, seed=1).double())
    x, _ = own(data(processes)[0], rank)
    with torch.no_grad():
        with guidance.capture():
            guidance.target(x)
        loss = guidance.loss(x)
    guidance.close()
    return [], loss


def test_without_grad_mode(worlds):
    expected = gradient(None, [N, N], {})
    check(worlds[2].run(no_gradient, 2), ([], expected[1]))


def made_too_early(rank: int) -> list[str]:
    group = torch.distributed.GroupMember.WORLD
    import warnings

    from pyguide.guidance import guidance as module

    distributed = module.is_distributed
    try:
        from pyguide.guidance import all_processes

        all_processes.is_distributed = module.is_distributed = lambda: False
        guidance = Guidance(Dense(20, seed=0), Dense(9, seed=1))
    finally:
        all_processes.is_distributed = module.is_distributed = distributed
    assert group is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with guidance.capture():
                guidance.target(torch.randn(4, 6))
    return [str(w.message) for w in caught]


def test_guidance_made_before_the_processes_says_so(worlds):
    for messages in worlds[2].run(made_too_early):
        assert len(messages) == 1 and "before torch.distributed was initialised" in messages[0]


def test_an_unknown_process_group():
    with pytest.raises(ValueError, match="process_group must be"):
        Guidance(Dense(20, seed=0), Dense(9, seed=1), process_group="global")
