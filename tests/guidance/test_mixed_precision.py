"""Autocast and GradScaler."""

from __future__ import annotations

import pytest
import torch
from guided_training import Net, batch, by_hand

from pyguide import reference
from pyguide.guidance import Guidance


def test_autocast_loses_nothing_beyond_the_activations(relative_error):
    """The distance of bfloat16 activations is as exact as that of float32 ones."""
    x, _ = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1).eval()
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    layer = target.blocks[1][0]
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with guidance.capture():
            target(x)
        inputs, activations = seen
        activations.retain_grad()
        loss = guidance.loss(x)
        guide_activations = by_hand(guide, x)["blocks.0.0"]
    loss.backward()
    assert activations.dtype is torch.bfloat16
    assert loss.dtype is torch.float32
    exact = activations.detach().double().requires_grad_()
    expected = 1 - reference.cka(exact, guide_activations.detach().double())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    # The one loss is the rounding of the gradient to bfloat16, 2⁻⁹ at most.
    assert relative_error(activations.grad, exact.grad) < 2**-9
    weight_gradient = exact.grad.T @ inputs.detach().to(torch.bfloat16).double()
    assert relative_error(layer.weight.grad, weight_gradient) < 2**-7
