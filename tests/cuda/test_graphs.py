"""Capture in CUDA graphs, and steps that never wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from guided import SAMPLES, GuidedTraining
from layers import related
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pyguide.guidance import GuideCache
from pyguide.ops import cka_pairs_and_flags

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda", 0)

#: Batch size, options of cka_pairs_and_flags; above 2048 samples layers go one by one.
CALLS = {
    "one tile": (64, {"route": "sample"}),
    "debiased": (200, {"route": "sample", "debiased": True}),
    "many launches": (2100, {"route": "sample"}),
    "feature space": (3000, {"route": "feature"}),
    "debiased feature space": (600, {"route": "feature", "debiased": True}),
}


def step_of(layers: list[Tensor], options: dict) -> Callable[[], list[Tensor]]:
    """Values, flags and gradients of all pairs of layers."""
    pairs = [(i, j) for i in range(len(layers)) for j in range(i)]

    def step() -> list[Tensor]:
        values, flags = cka_pairs_and_flags(layers, layers, pairs=pairs, **options)
        return [values, flags, *torch.autograd.grad(values.sum(), layers)]

    return step


def warm_up(step: Callable[[], object]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("call", CALLS)
def test_a_replay_on_new_data_equals_an_eager_step(call, dtype):
    n, options = CALLS[call]
    make = {"dtype": dtype, "device": DEVICE}
    layers = [x.requires_grad_() for x in related(n, 130, 40, 77, **make)]
    step = step_of(layers, options)
    warm_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        with torch.no_grad():
            for x, new in zip(layers, related(n, 130, 40, 77, seed=seed, **make), strict=True):
                x.copy_(new)
        graph.replay()
        # To the bit, but cuBLAS may choose other kernels in a capture.
        tolerance = 0.0 if options["route"] == "sample" else 1e-5
        for got, expected in zip(captured, step(), strict=True):
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_degenerate_layers_are_found_in_a_replay():
    layers = [x.requires_grad_() for x in related(64, 130, 40, device=DEVICE)]
    step = step_of(layers, {"route": "sample"})
    warm_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, flags, gradient, _ = step()
    graph.replay()
    assert values.item() > 0 and not flags.item()
    with torch.no_grad():
        layers[0].fill_(3.7)
    graph.replay()
    assert values.item() == 0 and flags.item() and not gradient.any()


def test_a_guided_training_step_in_a_graph():
    eager, graphed = GuidedTraining(DEVICE), GuidedTraining(DEVICE)
    for _ in range(3):
        eager.step()
    warm_up(graphed.step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.step()
    for _ in range(4):
        eager.step()
        graph.replay()
    torch.testing.assert_close(graphed.weights(), eager.weights(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def waiting_is_an_error():
    """Calls that wait for the device raise."""

    def forbid() -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=DEVICE).item()

    yield forbid
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("call", CALLS)
def test_no_call_waits_for_the_device(call, waiting_is_an_error):
    n, options = CALLS[call]
    step = step_of([x.requires_grad_() for x in related(n, 130, 40, device=DEVICE)], options)
    before = step()
    waiting_is_an_error()
    after = step()  # raises where it waits
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(before[0], after[0])


@pytest.mark.parametrize("keep", [None, "activations", "grams"])
def test_no_guided_step_waits_for_the_device(waiting_is_an_error, keep):
    cache = {} if keep is None else {"guide_cache": GuideCache(samples=SAMPLES, keep=keep)}
    training = GuidedTraining(DEVICE, **cache)
    training.step()
    before = training.weights()
    waiting_is_an_error()
    for _ in range(3):
        training.step()
    torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(training.weights(), before)


@pytest.mark.parametrize(("n", "most"), [(64, 5), (256, 5), (1000, 8)])
@pytest.mark.parametrize("pairs", [1, 50])
def test_launches_of_a_training_step(n, most, pairs):
    layers = [x.requires_grad_() for x in related(n, *[64] * (pairs + 1), device=DEVICE)]

    def step() -> None:
        values, _ = cka_pairs_and_flags(layers[:1] * pairs, layers[1:], route="sample")
        torch.autograd.grad(values.sum(), layers)

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    launched = [e.name for e in profiled.events() if "pyguide::cuda" in e.name]
    assert 3 < len(launched) <= most, launched
