"""Weights that change with the optimizer step, and steps whose weight is 0."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from guided_training import Calls, Net, batch, step

from pyguide.guidance import Guidance, schedules


def test_linear_is_a_straight_line_and_then_stays():
    weight = schedules.linear(3.0, -1.0, steps=8)
    assert [weight(s) for s in range(11)] == [3, 2.5, 2, 1.5, 1, 0.5, 0, -0.5, -1, -1, -1]


def test_cosine_is_half_a_cosine_and_then_stays():
    weight = schedules.cosine(3.0, 1.0, steps=10)
    for s in range(10):
        assert weight(s) == pytest.approx(2 + math.cos(math.pi * s / 10))
    assert [weight(0), weight(10), weight(11)] == [3, 1, 1]


def test_constant():
    assert {schedules.constant(0.7)(s) for s in range(5)} == {0.7}


@pytest.mark.parametrize("ramp", [schedules.linear, schedules.cosine])
def test_bad_ramps_raise(ramp):
    with pytest.raises(ValueError, match="start must be a finite number, got inf"):
        ramp(math.inf, 0.0, 10)
    with pytest.raises(ValueError, match="end must be a finite number, got None"):
        ramp(1.0, None, 10)
    with pytest.raises(ValueError, match="steps must be a whole number >= 1, got 0"):
        ramp(1.0, 0.0, 0)


def test_the_weight_of_each_step_is_the_schedules():
    x, _ = batch()
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return [2.0, 0.5, 7.0, 1.0][step]

    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, weight=schedule)
    for expected in (2.0, 0.5, 7.0):
        assert guidance.weight == expected
        for _ in range(2):  # Micro-batches are one step.
            with guidance.capture():
                target(x)
            loss = guidance.loss(x)
            assert loss.item() == pytest.approx(expected * guidance.last.sum().item(), rel=1e-6)
        guidance.step()
    assert asked == [0, 1, 2, 3]
    guidance.release()
    assert guidance.weight == 0


def test_a_weight_that_is_not_finite_raises_with_its_step():
    guidance = Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1), weight=lambda s: 1 / (1 - s / 2))
    guidance.step()
    with pytest.raises(ZeroDivisionError):
        guidance.step()
    guidance = Guidance(
        Net(2, 12, seed=0), Net(2, 9, seed=1), weight=lambda s: math.nan if s == 1 else 1.0
    )
    with pytest.raises(ValueError, match="the weight at step 1 must be a finite number, got nan"):
        guidance.step()


def test_no_cost_while_the_weight_is_zero():
    """No forward pass of the guide, nothing recorded; the same training as alone."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    calls = Calls(guide)
    guidance = Guidance(target, guide, weight=lambda step: float(step == 2))
    kept = []
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(2):
        with guidance.capture():
            logits = target(x)
        kept.append(list(guidance._recorders[0]._records))
        loss = guidance.total_loss(F.cross_entropy(logits, y), x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
    assert kept == [[], []]
    assert calls.count == 0
    plain = Net(2, 12, seed=0)
    optimizer_alone = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(2):
        F.cross_entropy(plain(x), y).backward()
        optimizer_alone.step()
        optimizer_alone.zero_grad()
    for p, q in zip(target.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)

    step(target, guidance, x, y, optimizer)
    assert calls.count == 1
    step(target, guidance, x, y, optimizer)
    assert calls.count == 1
    assert guidance.loss(x).item() == 0
    assert guidance.last is None


def test_a_closed_guidance_raises_at_weight_zero_too():
    guidance = Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1), weight=0.0)
    guidance.close()
    with pytest.raises(RuntimeError, match="closed"):
        guidance.loss(None)


def test_a_schedule_is_not_asked_after_release():
    """A table has no weight for the step after its last."""
    weights = [1.0, 0.5, 0.25]
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, weight=lambda step: weights[step], release_at=3)
    for weight in (*weights, 0, 0):
        assert guidance.weight == weight
        step(target, guidance, x, y)
    resumed = Guidance(target, guide, weight=lambda step: weights[step], release_at=3)
    resumed.load_state_dict(guidance.state_dict())
    assert resumed.released
    assert resumed.steps == 5
    by_hand = Guidance(target, guide, weight=lambda step: weights[step])
    by_hand.release()
    for _ in range(4):
        by_hand.step()
