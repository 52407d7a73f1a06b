"""A process that fails makes the others fail with its error: none waits for it."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pyguide.distances import LinearCKA
from pyguide.distributed import GlobalBatch
from pyguide.guidance import Guidance, LargeBatch

SECONDS = 60.0


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4))
    return target, nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


class Failing(nn.Module):
    def forward(self, x):
        raise FloatingPointError("the weights are spoilt")


def step(rank: int, where: str, stays: bool) -> Any:
    """Process 1 fails in its second step; it may stay alive without taking part any more."""
    target, guide = networks()
    guidance = Guidance(target, guide)
    large = LargeBatch(guidance, chunk_size=8)
    x = torch.randn(40, 6)
    try:
        for i in range(2):
            fails = rank == 1 and i == 1
            if fails and where in ("target", "chunk"):
                target.append(Failing())
            if fails and where == "guide":
                guide.append(Failing())
            if where == "chunk":
                large.backward(lambda x: target(x).sum(), x)
                continue
            with guidance.capture():
                target(x)
            guidance.loss(x, mask=torch.ones(40, 3) if fails and where == "mask" else None)
    except Exception:
        if rank == 1 and not stays:
            os._exit(3)
        if rank == 1:
            time.sleep(2 * SECONDS)
        raise
    return "finished"


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("target", "process 1 failed with FloatingPointError: the weights are spoilt"),
        ("guide", "process 1 failed with FloatingPointError: the weights are spoilt"),
        ("mask", "process 1 failed with TypeError: mask must be a bool tensor"),
        ("chunk", "process 1 failed with FloatingPointError: the weights are spoilt"),
    ],
)
@pytest.mark.slow
def test_its_error_reaches_the_others(where, error, stays, fresh_world):
    fresh_world.start(step, where, stays)
    result = fresh_world.result(0, SECONDS)
    assert isinstance(result, RuntimeError) and str(result).startswith(error)


def killed(rank: int) -> Any:
    target, guide = networks()
    guidance = Guidance(target, guide)
    x = torch.randn(40, 6)
    with guidance.capture():
        target(x)
    # Not before process 0 is connected too, which would be another error.
    connected = torch.zeros(1)
    if rank == 1:
        dist.recv(connected, 0)
        os._exit(9)
    dist.send(connected, 1)
    return guidance.loss(x)


def test_a_process_that_is_killed(fresh_world):
    fresh_world.start(killed)
    result = fresh_world.result(0, SECONDS)
    assert isinstance(result, RuntimeError) and "another process has ended" in str(result)


def skipping(rank: int) -> Any:
    """Both processes leave a step with an error of their own, and go on; process 1 is slow."""
    target, guide = networks()
    guidance = Guidance(target, guide)
    x = torch.randn(40, 6)
    with contextlib.suppress(FloatingPointError), guidance.capture():
        target(x)
        raise FloatingPointError("a bad batch")
    time.sleep(1.5 * rank)
    with guidance.capture():
        target(x)
    return guidance.loss(x).item()


def test_a_step_that_all_processes_skip_is_over(fresh_world):
    first, second = fresh_world.run(skipping)
    assert first == second > 0


def caught(rank: int) -> Any:
    """Process 1 fails alone, and both go on to their next step."""
    target, guide = networks()
    guidance = Guidance(target, guide)
    x = torch.randn(40, 6)
    for i in range(2):
        with contextlib.suppress(FloatingPointError if rank else RuntimeError):
            with guidance.capture():
                target(x)
                if rank == 1 and i == 0:
                    raise FloatingPointError("a bad batch")
            guidance.loss(x)
            return "finished"
    return "left"


def test_processes_that_go_on_after_one_failed_do_not_meet(fresh_world):
    fresh_world.start(caught)
    first, second = fresh_world.results(SECONDS)
    assert first == "left"
    assert isinstance(second, RuntimeError) and "compare different steps" in str(second)


def differing(rank: int, what: str) -> Any:
    target, guide = networks()
    x = torch.randn(40, 6)
    if what == "samples":
        GlobalBatch(LinearCKA(debiased=True))([x[:1]], [x[:1]])
    if what == "pairs":
        GlobalBatch(LinearCKA())([x, x], [x, x], pairs=[(0, rank)])
    if what == "same tensor":
        GlobalBatch(LinearCKA())([x], [x if rank else x.clone()])
    if what == "empty":
        GlobalBatch(LinearCKA())([x[:rank]], [x[:rank]])
    if rank and what == "guide":
        torch.nn.init.normal_(guide[0].weight)
    guidance = Guidance(
        target,
        guide,
        # The same shapes.
        [("1", "1")] if rank and what == "layers" else [("0", "0")],
        distance="rsa" if rank and what == "distance" else "cka",
        weight=2.0 if rank and what == "weight" else 1.0,
        release_at=9 if rank and what == "release" else 10,
    )
    with torch.set_grad_enabled(not (rank and what == "grad mode")):
        with guidance.capture():
            target(x[:, :6])
        guidance.total_loss(
            torch.zeros((), requires_grad=True), x, grad_norms=bool(rank and what == "grad_norms")
        )
    return "finished"


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("grad mode", RuntimeError, r"different layers: process 0 has .* with gradient.*process 1"),
        ("grad_norms", RuntimeError, "process 1 has cka with grad_norms"),
        ("distance", RuntimeError, "process 1 has rsa"),
        ("guide", RuntimeError, r"process 0 has cka with guide (\w+), .*cka with guide (?!\1)\w+,"),
        ("layers", RuntimeError, r"pairs \[\('0', '0'\)\].*pairs \[\('1', '1'\)\]"),
        ("weight", RuntimeError, "weight 1 in step 0.*process 1 .*weight 2 in step 0"),
        ("release", RuntimeError, "release_at 10.*release_at 9"),
        ("pairs", RuntimeError, r"process 0 has cka, pairs \[\(0, 0\)\].*pairs \[\(0, 1\)\]"),
        ("same tensor", RuntimeError, r"layers \[\(0, 1\)\].*process 1 .*layers \[\(0, 0\)\]"),
        ("samples", ValueError, "at least 4 samples, all processes together have 2"),
        ("empty", (RuntimeError, ValueError), "(process 0 failed with ValueError: )?xs"),
    ],
)
def test_processes_that_do_not_do_the_same(what, error, message, worlds, fresh_world):
    world = fresh_world if what in ("empty", "same tensor") else worlds[2]
    world.start(differing, what)
    for result in world.results(SECONDS):
        with pytest.raises(error, match=message):
            raise result


def recovering(rank: int) -> Any:
    """Both processes leave out a batch on which the target fails; one of them is slow then."""
    target, guide = networks()
    guidance = Guidance(target, guide)
    for i in range(3):
        try:
            with guidance.capture():
                target(torch.randn(40, 6))
                if i == 1:
                    raise FloatingPointError("not a good batch")
        except FloatingPointError:
            time.sleep(2.5 * rank)
            continue
        loss = guidance.loss(torch.randn(40, 6))
    return loss.detach()


@pytest.mark.slow
def test_an_error_in_all_processes_can_be_caught(fresh_world):
    """One who waits for a process that goes on must not take it for one that failed."""
    first, second = fresh_world.run(recovering)
    assert first == second
