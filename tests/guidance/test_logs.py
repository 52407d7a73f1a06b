"""What guidance logs: parts of the loss, gradient norms, times, TensorBoard."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guided_training import Net, batch, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyguide.distances import RSA, LinearCKA
from pyguide.guidance import Guidance, Pair, schedules, timing

PAIRS = [("blocks.0.0", "head"), ("blocks.1.0", "blocks.0.0")]


def test_logs_of_loss():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, distance="debiased_cka", weight=3.0)
    assert guidance.last is None
    assert guidance.log_dict() == {}
    with guidance.capture():
        target(x)
    loss = guidance.loss(x)
    logs = guidance.log_dict()
    distances = [
        logs.pop("guidance/debiased_cka/blocks.0.0~head"),
        logs.pop("guidance/debiased_cka/blocks.1.0~blocks.0.0"),
    ]
    values = [logs["guidance/loss"], *distances]
    assert all(isinstance(v, torch.Tensor) and v.shape == () for v in values)
    assert not any(v.requires_grad for v in values)
    assert logs == {"guidance/loss": loss, "guidance/weight": 3.0, "guidance/step": 0}
    assert loss.item() == pytest.approx(3 * sum(v.item() for v in distances), rel=1e-6)
    assert guidance.last.tolist() == [v.item() for v in distances]


def test_two_pairs_of_the_same_layers_are_both_logged():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    half = Pair("head", "head", extract=lambda output: output[:, :2])
    guidance = Guidance(target, guide, pairs=[("head", "head"), half, PAIRS[0]])
    with guidance.capture():
        target(x)
    guidance.loss(x)
    names = ["head~head", "head~head#2", "blocks.0.0~head"]
    logs = guidance.log_dict()
    assert [logs[f"guidance/cka/{name}"] for name in names] == guidance.last.tolist()
    assert len(set(guidance.last.tolist())) == 3


def test_variants_of_a_distance_are_logged_apart():
    x, _ = batch()
    for distance, name in ((RSA("euclidean"), "rsa(euclidean)"), (RSA(), "rsa")):
        target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
        guidance = Guidance(target, guide, pairs=PAIRS[:1], distance=distance)
        with guidance.capture():
            target(x)
        guidance.loss(x)
        assert f"guidance/{name}/blocks.0.0~head" in guidance.log_dict()
        assert str(guidance.plan()).splitlines()[-1].startswith(f"{name};")


def test_total_loss_is_the_sum_and_is_logged():
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, weight=schedules.linear(1.0, 0.0, steps=4))
    for i in range(3):
        with guidance.capture():
            logits = target(x)
        task_loss = F.cross_entropy(logits, y)
        total = guidance.total_loss(task_loss, x)
        with guidance.capture():
            target(x)
        assert torch.equal(total, task_loss + guidance.loss(x))
        with guidance.capture():
            target(x)
        guidance.total_loss(task_loss, x)
        logs = guidance.log_dict()
        assert logs["guidance/task_loss"] == task_loss
        assert not logs["guidance/task_loss"].requires_grad
        assert logs["guidance/weight"] == 1 - i / 4
        assert logs["guidance/step"] == i
        guidance.step()
        # Still what the last loss was made of.
        assert guidance.log_dict() == logs


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("options", [{"align_only": 1}, {}, {"release_at": 0}])
def test_in_place_changes_of_the_loss_do_not_reach_the_logs(weight, options):
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, weight=weight, **options)
    for total in (True, False):
        with guidance.capture():
            logits = target(x)
        task_loss = F.cross_entropy(logits, y)
        loss = guidance.total_loss(task_loss, x) if total else guidance.loss(x)
        logs = {name: float(value) for name, value in guidance.log_dict().items()}
        loss += 1
        task_loss += 1
        assert guidance.log_dict() == logs


def test_logs_around_release():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, release_at=1)
    step(target, guidance, x, y)
    assert guidance.released
    assert len(guidance.log_dict()) == 6
    loss = step(target, guidance, x, y)
    assert guidance.log_dict() == {
        "guidance/loss": 0.0,
        "guidance/task_loss": loss,
        "guidance/weight": 0.0,
        "guidance/step": 1,
    }
    guidance.loss(x)
    assert guidance.log_dict() == {}


# --- gradient norms -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_norms(checkpointed):
    x, y = batch()

    def run(*terms: str) -> tuple[Guidance, torch.Tensor]:
        target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
        if checkpointed:
            block, inner = target.blocks[1], target.blocks[1].forward
            block.forward = lambda x: checkpoint(inner, x, use_reentrant=False)
        target.blocks[0][1].weight.requires_grad_(False)
        guidance = Guidance(target, guide, pairs=PAIRS, weight=0.3)
        with guidance.capture():
            logits = target(x)
        losses = {"task": F.cross_entropy(logits, y)}
        if "total" in terms:
            losses["total"] = guidance.total_loss(losses["task"], x, grad_norms=True)
        else:
            losses["guidance"] = guidance.loss(x)
        sum(losses[term] for term in terms).backward()
        gradients = [p.grad for p in target.parameters() if p.grad is not None]
        return guidance, torch.nn.utils.get_total_norm(gradients)

    guidance, norm = run("total")
    logs = guidance.log_dict()
    expected = {term: run(term)[1] for term in ("task", "guidance")}
    torch.testing.assert_close(logs["guidance/grad_norm"], expected["guidance"])
    torch.testing.assert_close(logs["guidance/task_grad_norm"], expected["task"])
    # The extra backward passes leave the gradient itself alone.
    assert torch.equal(norm, run("task", "guidance")[1])
    assert not logs["guidance/grad_norm"].requires_grad


def test_gradient_norms_only_where_asked_for():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, weight=lambda step: float(step < 2))
    for i in range(3):
        step(target, guidance, x, y, grad_norms=i > 0)
        logs = guidance.log_dict()
        assert ("guidance/grad_norm" in logs) == ("guidance/task_grad_norm" in logs) == (i > 0)
    assert logs["guidance/grad_norm"] == 0
    assert logs["guidance/task_grad_norm"] > 0


# --- times --------------------------------------------------------------------------------------


class _Clock:
    """Stands still but for what a test adds, so that a loaded machine does not matter."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        clock.pause(1)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.clock.pause(2)
        return grad, None


class _SlowCKA(LinearCKA):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def values_and_flags(self, *args, **options):
        values, flags = super().values_and_flags(*args, **options)
        return _Slow.apply(values, self.clock), flags


def test_times_of_the_parts(clock):
    """Pauses in each part are found in it, and nowhere else."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, distance=_SlowCKA(clock), timed=True)
    assert guidance.times() == {}
    guide.register_forward_hook(lambda *_: clock.pause(3))
    target.register_forward_hook(lambda *_: clock.pause(4))
    step(target, guidance, x, y)
    clock.pause(5)  # Between steps: loading data.
    step(target, guidance, x, y)
    assert guidance.times() == {
        "guidance/seconds/guide": 3,
        "guidance/seconds/distances": 1,
        "guidance/seconds/backward": 2,
        "guidance/seconds/step": 10,
        "guidance/time_share": 0.6,
    }


def test_timing_changes_no_gradient():
    x, y = batch()
    gradients = []
    for timed in (False, True):
        target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
        step(target, Guidance(target, guide, timed=timed), x, y)
        gradients.append([p.grad for p in target.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_times_of_released_and_micro_batch_steps(clock):
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, release_at=1, timed=True)
    guide.register_forward_hook(lambda *_: clock.pause(3))
    target.register_forward_hook(lambda *_: clock.pause(1))
    for _ in range(2):
        with guidance.capture():
            target(x)
        guidance.loss(x).backward()
    guidance.step()
    assert guidance.times()["guidance/seconds/guide"] == 6
    step(target, guidance, x, y)
    times = guidance.times()
    assert times.keys() == {"guidance/seconds/step", "guidance/time_share"}
    assert times["guidance/time_share"] == 0


def test_times_without_timed_raise():
    guidance = Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1))
    with pytest.raises(RuntimeError, match="timed=True"):
        guidance.times()


@pytest.mark.cuda
def test_logs_and_times_on_a_gpu_without_a_sync():
    x, y = (t.cuda() for t in batch())
    target, guide = Net(2, 12, seed=0).cuda(), Net(2, 9, seed=1).cuda()
    guidance = Guidance(target, guide, pairs=PAIRS, timed=True)
    step(target, guidance, x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(target, guidance, x, y, grad_norms=True)
        logs = guidance.log_dict()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(v.is_cuda for v in logs.values() if isinstance(v, torch.Tensor))
    times = guidance.times()
    assert times["guidance/seconds/backward"] > 0
    assert 0 < times["guidance/time_share"] < 1


# --- TensorBoard --------------------------------------------------------------------------------


class _Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag] = value, step


@pytest.mark.parametrize("timed", [False, True])
def test_write_to_writes_the_logs_under_the_step_of_the_loss(timed):
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS, timed=timed)
    for _ in range(3):
        step(target, guidance, x, y)
    expected = guidance.log_dict() | (guidance.times() if timed else {})
    del expected["guidance/step"]
    for given, used in ((None, 2), (70, 70)):
        writer = _Writer()
        guidance.write_to(writer, given)
        assert writer.scalars == {k: (float(v), used) for k, v in expected.items()}


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, pairs=PAIRS)
    expected = []
    with SummaryWriter(tmp_path) as writer:
        for _ in range(3):
            step(target, guidance, x, y)
            guidance.write_to(writer)
            expected.append(guidance.log_dict())
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in expected[0].keys() - {"guidance/step"}:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(i, pytest.approx(float(e[name]))) for i, e in enumerate(expected)]


def test_frozen_parameters_have_no_gradient_norm():
    x, y = batch()
    target, guide = Net(2, 12, seed=0).requires_grad_(False), Net(2, 9, seed=1)
    target.head = nn.Linear(12, 4)
    guidance = Guidance(target, guide, pairs=[("head", "head")])
    step(target, guidance, x, y, grad_norms=True)
    assert guidance.log_dict()["guidance/grad_norm"] > 0
