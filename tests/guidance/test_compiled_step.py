"""A guided step inside one function of torch.compile equals eager mode."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from guided_training import Net, batch
from networks import hooks

from pyguide.guidance import Guidance, gaussian_noise, schedules

PAIRS = [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]

pytestmark = pytest.mark.xdist_group("inductor")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _run(backend, *, fullgraph=True, inside=False, steps=5, dtype=None, **options):
    """Losses, weights and logs of a run whose step up to the loss is compiled."""
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, **({"pairs": PAIRS} | options))
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)

    def step(x, y):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            with guidance.capture():
                logits = target(x)
            loss = guidance.total_loss(F.cross_entropy(logits, y), x)
        if inside:
            loss.backward()
            return loss.detach()
        return loss

    if backend is not None:
        step = torch.compile(step, backend=backend, fullgraph=fullgraph)
    losses, logs = [], []
    for seed in range(steps):
        loss = step(*batch(seed=seed))
        if not inside:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
        losses.append(loss.item())
        logs.append({name: float(value) for name, value in guidance.log_dict().items()})
    return losses, list(target.parameters()), logs, hooks(target)


def _assert_equals_eager(backend, make, **options) -> None:
    eager, compiled = _run(None, **make()), _run(backend, **make(), **options)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    torch.testing.assert_close(compiled[1], eager[1])
    for a, b in zip(compiled[2], eager[2], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert compiled[3] == eager[3]


_ONE_GRAPH = {
    "plain": (lambda: {}, 1),
    "example": (lambda: {"pairs": "even", "example": batch()[0]}, 1),
    "batch_stats": (lambda: {"guide_mode": "batch_stats"}, 1),
    "debiased": (lambda: {"distance": "debiased_cka"}, 1),
    # The first change of the weight makes it an input of the code.
    "linear": (lambda: {"weight": schedules.linear(1.0, 0.2, steps=10)}, 2),
    # Code for each phase.
    "align, release": (lambda: {"align_only": 2, "release_at": 4}, 3),
    "zero": (lambda: {"weight": lambda step: float(step < 2)}, 3),
}
_SLOW = ("linear", "align, release", "zero")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in _SLOW else ()) for n in _ONE_GRAPH],
)
def test_one_graph_equals_eager(name):
    make, compilations = _ONE_GRAPH[name]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    _assert_equals_eager(counter, make, fullgraph=True)
    assert counter.frame_count == compilations


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"pairs": "even"},
        lambda: {"guide_transform": gaussian_noise(seed=2)},
        lambda: {"guide_mode": "calibrated", "calibration_batches": 2},
    ],
    ids=["even", "noise", "calibrated"],
)
def test_with_graph_breaks_it_equals_eager(make):
    _assert_equals_eager("aot_eager", make, fullgraph=False)


@pytest.mark.slow
def test_backward_after_a_graph_break():
    _assert_equals_eager("aot_eager", dict, fullgraph=False, inside=True)


def test_backward_in_the_one_graph(monkeypatch):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch cannot trace backward()")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    _assert_equals_eager(counter, dict, fullgraph=True, inside=True)
    assert counter.frame_count == 1


def test_guide_buffers_do_not_change_in_compiled_code():
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    buffers = dict(guide.named_buffers())
    guidance = Guidance(target, guide, pairs=PAIRS, guide_mode="batch_stats")

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x):
        with guidance.capture():
            target(x)
        return guidance.loss(x)

    for _ in range(2):
        step(batch()[0]).backward()
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(buffer is buffers[name] for name, buffer in guide.named_buffers())
    assert not any(module.training for module in guide.modules())


def test_a_degenerate_layer_is_named_by_step():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    torch.nn.init.zeros_(target.blocks[1][0].weight)
    guidance = Guidance(target, guide, pairs=PAIRS)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x):
        with guidance.capture():
            target(x)
        return guidance.loss(x)

    step(x)
    with pytest.warns(UserWarning, match=r"'blocks\.1\.0'.*degenerate"):
        guidance.step()


def test_a_small_batch_is_one_graph_too():
    """Where eager mode warns that the biased estimator is close to 1."""
    x = batch()[0][:10]
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS)

    def step(x):
        with guidance.capture():
            target(x)
        return guidance.loss(x)

    loss = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    with pytest.warns(UserWarning, match="biased CKA of 10 samples"):
        assert step(x).item() == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_inductor_equals_eager(inside):
    make = _ONE_GRAPH["linear"][0]
    _assert_equals_eager("inductor", make, fullgraph=not inside, inside=inside)


@pytest.mark.slow
def test_inductor_in_bfloat16_equals_eager():
    """Inductor fuses roundings to bfloat16 away, so only to its precision."""
    eager = _run(None, dtype=torch.bfloat16)
    compiled = _run("inductor", dtype=torch.bfloat16)
    assert compiled[0] == pytest.approx(eager[0], rel=2e-2)
