"""Guided training on CUDA is guided training on the CPU."""

from __future__ import annotations

import pytest
import torch
from guided import GuidedTraining

STEPS = 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def trained_on_cpu():
    """Losses and weights by the CPU's kernels, by dtype."""
    found = {}
    for dtype in TOLERANCE:
        training = GuidedTraining(torch.device("cpu"), dtype)
        losses = torch.stack([training.step() for _ in range(STEPS)])
        found[dtype] = losses, training.weights()
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_training_equals_the_cpus(trained_on_cpu, device, dtype):
    losses, weights = trained_on_cpu[dtype]
    training = GuidedTraining(device, dtype)
    before = training.weights()
    got = torch.stack([training.step() for _ in range(STEPS)]).cpu()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got, losses, rtol=tolerance, atol=tolerance)
    moved = (weights - before).norm()
    assert (training.weights() - weights).norm() / moved < 10 * tolerance
    assert moved > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_grad_scaler(device, dtype, relative_error):
    """The scale reaches a term that is too small for 16-bit gradients."""

    def gradient(dtype: torch.dtype | None, scale: float) -> torch.Tensor:
        training = GuidedTraining(device, weight=1e-6, align_only=1)
        scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=scale > 1)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = training.loss()
        assert loss.dtype is torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(training.optimizer)
        scaler.step(training.optimizer)
        scaler.update()
        return training.target[0].weight.grad

    exact = gradient(None, 1.0)
    assert relative_error(gradient(dtype, 2.0**16), exact) < 0.05
    if dtype is torch.float16:
        assert relative_error(gradient(dtype, 1.0), exact) > 0.1
