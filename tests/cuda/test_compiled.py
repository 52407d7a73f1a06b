"""torch.compile on CUDA equals eager mode."""

from __future__ import annotations

import pytest
import torch
from guided import GuidedTraining
from layers import related

import pyguide


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def backend(small) -> str:
    """Inductor's code for the CPU is not what the emulated tests are about."""
    return "aot_eager" if small else "inductor"


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fullgraph_equals_eager(device, backend, dtype, precision):
    x, y, z = (x.requires_grad_() for x in related(48, 90, 60, 33, dtype=dtype, device=device))

    def loss(x, y, z):
        values = pyguide.cka_pairs([x, z], [y], pairs=[(0, 0), (1, 0)], precision=precision)
        return (1 - values).sum() + pyguide.gram([x], precision=precision).square().mean()

    expected = loss(x, y, z)
    expected_gradients = torch.autograd.grad(expected, (x, y, z))
    got = torch.compile(loss, backend=backend, fullgraph=True)(x, y, z)
    gradients = torch.autograd.grad(got, (x, y, z))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_guided_step_equals_an_eager_one(device, backend):
    eager, compiled = GuidedTraining(device), GuidedTraining(device)
    compiled.loss = torch.compile(compiled.loss, backend=backend, fullgraph=True)
    for _ in range(4):
        expected, got = eager.step(), compiled.step()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.weights(), eager.weights(), rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_compiled_with_cuda_graphs_equals_eager():
    """mode="reduce-overhead": torch captures and replays what it compiled."""
    device = torch.device("cuda", 0)

    def loss(x, y):
        return (1 - pyguide.cka_pairs([x], [y])).sum()

    compiled = torch.compile(loss, mode="reduce-overhead", fullgraph=True)
    for seed in range(5):  # the first runs record
        x, y = (x.requires_grad_() for x in related(64, 500, 300, seed=seed, device=device))
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(x, y)
        gradients = torch.autograd.grad(got, (x, y))
        expected = loss(x, y)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, y)))
