"""Autocast and GradScaler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_training import Net, batch, by_hand

from pyguide import reference
from pyguide.guidance import Guidance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_loses_nothing_beyond_the_activations(dtype, relative_error):
    """The distance of 16-bit activations is as exact as that of float32 ones."""
    x, _ = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1).eval()
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    layer = target.blocks[1][0]
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    with torch.autocast("cpu", dtype=dtype):
        with guidance.capture():
            target(x)
        inputs, activations = seen
        activations.retain_grad()
        loss = guidance.loss(x)
        guide_activations = by_hand(guide, x)["blocks.0.0"]
    loss.backward()
    assert activations.dtype is dtype
    assert loss.dtype is torch.float32
    exact = activations.detach().double().requires_grad_()
    expected = 1 - reference.cka(exact, guide_activations.detach().double())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    # The one loss is the rounding of the gradient to bfloat16, 2⁻⁹ at most, or to float16.
    assert relative_error(activations.grad, exact.grad) < 2**-9
    weight_gradient = exact.grad.T @ inputs.detach().to(dtype).double()
    assert relative_error(layer.weight.grad, weight_gradient) < 2**-7


def _trained(dtype: torch.dtype | None, scale: float | None, steps: int = 1):
    """Gradients before the optimizer's step, unscaled, of a few guided steps."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, weight=1e-6, align_only=steps)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            with guidance.capture():
                logits = target(x)
            loss = guidance.total_loss(F.cross_entropy(logits, y), x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        guidance.step()
    return target.blocks[0][0].weight.grad


def test_the_scale_reaches_the_gradients(relative_error):
    """A term too small for float16 gradients is right with a GradScaler, wrong without."""
    exact = _trained(None, None)
    assert relative_error(_trained(torch.float16, 2.0**16), exact) < 0.02
    assert relative_error(_trained(torch.float16, None), exact) > 0.1


def test_a_scale_changes_nothing_in_float32(relative_error):
    assert relative_error(_trained(None, 2.0**16, steps=3), _trained(None, None, steps=3)) < 1e-6


def test_a_skipped_step_need_not_be_counted():
    """As the documentation of step() has it."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, release_at=2)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = target.head.weight.clone()
    counted = []
    for factor in (torch.inf, 1.0, 1.0):
        with torch.autocast("cpu", dtype=torch.float16):
            with guidance.capture():
                logits = target(x)
            loss = guidance.total_loss(F.cross_entropy(logits, y) * factor, x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() >= scale:
            guidance.step()
        counted.append((guidance.steps, guidance.released, torch.equal(target.head.weight, before)))
    assert counted == [(0, False, True), (1, False, False), (2, True, False)]
