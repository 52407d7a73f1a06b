"""The phase in which guidance alone trains the target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_training import Net, batch, step

from pyguide.guidance import Guidance


def _gradients(**options) -> tuple[Guidance, dict[str, torch.Tensor | None]]:
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, **options)
    step(target, guidance, *batch())
    return guidance, {name: p.grad for name, p in target.named_parameters()}


def _guidance_alone() -> dict[str, torch.Tensor | None]:
    x, _ = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    with guidance.capture():
        target(x)
    guidance.loss(x).backward()
    return {name: p.grad for name, p in target.named_parameters()}


def test_the_gradient_is_that_of_guidance():
    guidance, gradients = _gradients(align_only=1)
    assert not guidance.aligning
    for name, expected in _guidance_alone().items():
        if expected is None:
            assert gradients[name] is None, name
        else:
            assert torch.equal(gradients[name], expected), name
    assert gradients["head.weight"] is None
    assert gradients["blocks.1.0.weight"].norm() > 1e-4


def test_the_phase_ends_with_its_last_step():
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=2)
    for aligning in (True, True, False, False):
        assert guidance.aligning == aligning
        with guidance.capture():
            logits = target(x)
        task_loss = F.cross_entropy(logits, y)
        loss = guidance.total_loss(task_loss, x)
        guided = guidance.log_dict()["guidance/loss"]
        assert torch.equal(loss, guided if aligning else task_loss + guided)
        assert guidance.log_dict()["guidance/task_loss"] == task_loss
        guidance.step()


def test_optimizers_leave_the_output_layer_alone():
    """No weight decay and no change of Adam's averages, so that its first step is a first."""
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    before = {name: p.clone() for name, p in target.named_parameters()}
    optimizer = torch.optim.AdamW(target.parameters(), lr=0.01, weight_decay=0.1)
    guidance = Guidance(target, guide, align_only=2)
    for _ in range(2):
        step(target, guidance, *batch(), optimizer)
    for name, p in target.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith(("head.", "blocks.1.1.")), name
    assert not optimizer.state[target.head.weight]
    step(target, guidance, *batch(), optimizer)
    assert optimizer.state[target.head.weight]["step"] == 1


def test_a_task_loss_that_is_not_finite_does_not_matter():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=1)
    with guidance.capture():
        logits = target(x)
    guidance.total_loss(logits.sum() * torch.inf, x).backward()
    assert all(torch.isfinite(p.grad).all() for p in target.parameters() if p.grad is not None)


def test_weight_zero_in_the_phase_trains_nothing():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=2, weight=lambda step: float(step > 0))
    loss = step(target, guidance, x, y)
    assert loss == 0
    assert all(p.grad.count_nonzero() == 0 for p in target.parameters())


def test_without_grad_the_value_is_that_of_guidance():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=2)
    with torch.no_grad():
        with guidance.capture():
            logits = target(x)
        loss = guidance.total_loss(F.cross_entropy(logits, y) * torch.inf, x)
    assert loss == guidance.log_dict()["guidance/loss"]


def test_released_in_the_phase_the_task_trains():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=5)
    guidance.release()
    assert not guidance.aligning
    task_loss = F.cross_entropy(target(x), y)
    assert guidance.total_loss(task_loss, x) is task_loss


@pytest.mark.parametrize("align_only", [1, 3])
def test_alignment_and_then_plain_training(align_only):
    """The paper's guidance as initialisation: align for some steps, then release."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, align_only=align_only, release_at=align_only)
    for i in range(align_only + 2):
        with guidance.capture():
            logits = target(x)
        task_loss = F.cross_entropy(logits, y)
        loss = guidance.total_loss(task_loss, x)
        if i < align_only:
            assert torch.equal(loss, guidance.log_dict()["guidance/loss"])
        else:
            assert loss is task_loss
        guidance.step()
