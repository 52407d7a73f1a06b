"""The frozen guide: its modes, its inputs, and that it never changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from guided_training import N, Net, batch, by_hand, step
from torch import nn

from pyguide import reference
from pyguide.guidance import Guidance, gaussian_noise
from pyguide.guidance.all_processes import digest_of_guide
from pyguide.guidance.guide import FrozenGuide

MODES = ["eval", "batch_stats", "calibrated"]


class _Restless(nn.Module):
    """Buffers that change in every forward pass, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counted", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("made", None)

    def forward(self, x):
        self.counted += 1
        self.replaced = self.replaced + 1
        self.made = x.mean()
        return x + self.counted.sum() + self.replaced


def _restless_guide() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(10, 9)),
        nn.BatchNorm1d(9, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        _Restless(),
        nn.utils.spectral_norm(nn.Linear(9, 8)),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.Linear(8, 4),
    )


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in (*model.named_parameters(), *model.named_buffers())}


def _settings(model: nn.Module) -> list[tuple]:
    names = ("track_running_stats", "momentum")
    return [tuple(getattr(m, name, None) for name in names) for m in model.modules()]


@pytest.mark.parametrize("mode", MODES)
def test_the_guide_never_changes(mode):
    """Under a parent's train() and an optimizer over both networks."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), _restless_guide()
    before, objects = _state(guide), dict(guide.named_buffers())
    settings = _settings(guide)
    guidance = Guidance(target, guide, guide_mode=mode, calibration_batches=2)
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    losses, grad_modes = [], []
    guide.register_forward_pre_hook(
        lambda module, args: grad_modes.append(
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
    )
    for _ in range(4):
        guide.train()
        guide.requires_grad_(True)
        losses.append(step(target, guidance, x, y, optimizer))
        assert not any(module.training for module in guide.modules())
    assert losses[0] != losses[2]
    assert grad_modes == [(False, False)] * 4
    assert not any(p.requires_grad for p in guide.parameters())
    assert all(p.grad is None for p in guide.parameters())
    assert _settings(guide) == settings
    assert guide[4].made is None
    after = _state(guide)
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    for name, buffer in guide.named_buffers():
        assert buffer is objects[name], name


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_forward_pass_does_not_change_the_guide_either(mode):
    target, guide = Net(2, 12, seed=0), _restless_guide()
    before, settings = _state(guide), _settings(guide)
    guidance = Guidance(target, guide, guide_mode=mode, pairs=[("blocks.0.0", "0")])
    with guidance.capture():
        target(batch()[0])
    guide[7].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guidance.loss(batch()[0])
    assert _settings(guide) == settings
    assert not any(module.training for module in guide.modules())
    for name, value in _state(guide).items():
        assert torch.equal(value, before[name]), name


def test_buffers_that_the_user_changes_are_used():
    """The guide runs on copies of its buffers, which follow them."""
    x, _ = batch()
    target, guide = Net(1, 12, seed=0), Net(2, 9, seed=1, dropout=0.0)
    guidance = Guidance(target, guide, pairs=[("blocks.0.0", "blocks.1.0")])
    for change in (
        lambda norm: norm.running_mean.sub_(3.0),
        lambda norm: setattr(norm, "running_var", torch.rand(9) + 0.1),
        lambda norm: norm.load_state_dict(norm.state_dict() | {"running_mean": torch.rand(9)}),
    ):
        change(guide.blocks[0][1])
        with guidance.capture():
            target(x)
        expected = _distance(target.blocks[0][0](x), by_hand(guide, x)["blocks.1.0"])
        assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-5)


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return 1 - reference.cka(x.double(), y.double()).item()


def _guided(target: Net, guidance: Guidance, x: torch.Tensor) -> float:
    with guidance.capture():
        target(x)
    return guidance.loss(x).item()


def _setup(mode: str, **options) -> tuple[Net, Net, Guidance]:
    """With a guide whose own statistics are far from its activations'."""
    target, guide = Net(1, 12, seed=0, dropout=0.0), Net(3, 9, seed=1)
    for block in guide.blocks:
        block[1].running_mean.fill_(-1.0)
    pairs = [("blocks.0.0", "blocks.2.0")]
    return target, guide, Guidance(target, guide, pairs=pairs, guide_mode=mode, **options)


def _expected(target: Net, guide: Net, x: torch.Tensor) -> float:
    with torch.no_grad():
        return _distance(target.blocks[0][0](x), by_hand(guide, x)["blocks.2.0"])


def test_eval_uses_the_guides_own_statistics():
    x, _ = batch()
    target, guide, guidance = _setup("eval")
    expected = _expected(target, copy.deepcopy(guide).eval(), x)
    assert _guided(target, guidance, x) == pytest.approx(expected, abs=1e-5)


def test_batch_stats_uses_the_batch():
    x, _ = batch()
    target, guide, guidance = _setup("batch_stats")
    expected = _expected(target, copy.deepcopy(guide).train(), x)
    assert abs(expected - _expected(target, copy.deepcopy(guide).eval(), x)) > 0.01
    for _ in range(2):
        assert _guided(target, guidance, x) == pytest.approx(expected, abs=1e-5)


def test_calibrated_uses_the_batch_and_then_the_mean_of_the_first_batches():
    target, guide, guidance = _setup("calibrated", calibration_batches=3)
    by_torch = copy.deepcopy(guide).train()
    for block in by_torch.blocks:
        block[1].momentum = None
    for seed in range(3):
        x, _ = batch(seed=seed)
        expected = _expected(target, by_torch, x)
        assert _guided(target, guidance, x) == pytest.approx(expected, abs=1e-5)
    by_torch.eval()
    for seed in range(3, 6):
        x, _ = batch(seed=seed)
        expected = _expected(target, by_torch, x)
        assert abs(expected - _expected(target, copy.deepcopy(guide).train(), x)) > 1e-4
        assert _guided(target, guidance, x) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_is_off(mode):
    x, _ = batch()
    losses = []
    for dropout in (0.0, 0.9):
        target, guide = Net(1, 12, seed=0), Net(2, 9, seed=1, dropout=dropout)
        guidance = Guidance(target, guide, pairs=[("blocks.0.0", "blocks.1.0")], guide_mode=mode)
        losses.append(_guided(target, guidance, x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", MODES)
def test_validation_in_inference_mode_before_training_changes_nothing(mode):
    """As trainers do to see that validation works."""
    x, y = batch()
    losses = []
    for off in (torch.no_grad, torch.inference_mode):
        target, guide = Net(2, 12, seed=0), _restless_guide()
        before = _state(guide)
        options = {"guide_mode": mode, "calibration_batches": 2}
        guidance = Guidance(target, guide, pairs=[("blocks.0.0", "5")], **options)
        with off():
            first = _guided(target, guidance, x)
        losses.append((first, *(step(target, guidance, x, y).item() for _ in range(2))))
        for name, value in _state(guide).items():
            assert torch.equal(value, before[name]), name
    assert losses[0] == losses[1]


# --- the guide's input --------------------------------------------------------------------------


def test_guide_transform_makes_the_guides_input():
    x, _ = batch()
    target, guide, guidance = _setup("eval", guide_transform=lambda x: x[:, ::2].repeat(1, 2) - 1)
    seen = []
    guide.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _guided(target, guidance, x)
    with guidance.capture():
        target(x)
    guidance.loss(x, guide_inputs=x + 1)
    assert torch.equal(seen[0], x[:, ::2].repeat(1, 2) - 1)
    assert torch.equal(seen[1], x + 1)


def test_the_state_of_a_transform_is_saved():
    class Counting:
        calls = 0

        def __call__(self, x):
            self.calls += 1
            return x

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    x, _ = batch()
    target, _, guidance = _setup("eval", guide_transform=Counting())
    for _ in range(3):
        _guided(target, guidance, x)
    transform = Counting()
    _setup("eval", guide_transform=transform)[2].load_state_dict(guidance.state_dict())
    assert transform.calls == 3


def test_an_example_sees_the_transform_and_leaves_its_state():
    x, _ = batch()
    target, guide = Net(1, 12, seed=0), nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 4))
    noise = gaussian_noise(seed=4)
    seen = []
    guide.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    class Half:
        def __call__(self, x):
            return noise(x[:, :5])

        def state_dict(self):
            return noise.state_dict()

        def load_state_dict(self, state):
            noise.load_state_dict(state)

    guidance = Guidance(target, guide, example=x, guide_transform=Half())
    assert guidance.plan(x).rows[0].guide_shape == (N, 9)
    _guided(target, guidance, x)
    assert len(seen) == 3
    assert torch.equal(seen[2], seen[0])


def test_noise_is_what_the_guide_sees():
    x, _ = batch()
    target, guide, guidance = _setup("eval", guide_transform=gaussian_noise(seed=4))
    seen = []
    guide.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    state = torch.get_rng_state()
    for _ in range(2):
        _guided(target, guidance, x)
    assert torch.equal(torch.get_rng_state(), state)
    noise = gaussian_noise(seed=4)
    assert torch.equal(seen[0], noise(x))
    assert torch.equal(seen[1], noise(x))
    assert (
        abs(torch.corrcoef(torch.stack([s.flatten() for s in (*seen, x)])).fill_diagonal_(0)).max()
        < 0.2
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_standard_normal(dtype):
    x = torch.full((100, 20, 10), 5.0, dtype=dtype)
    noise = gaussian_noise(seed=0)(x)
    assert (noise.shape, noise.dtype) == (x.shape, dtype)
    values = noise.double()
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03
    assert abs(values.pow(4).mean() - 3) < 0.2


def test_noise_replaces_floating_point_arguments_only():
    x, ids, flag = torch.randn(4, 3), torch.arange(4), True
    noise = gaussian_noise(seed=0)
    first, second, third = noise((x, ids, flag))
    assert not torch.equal(first, x)
    assert second is ids
    assert third is flag
    named = noise({"x": x, "other": x, "ids": ids})
    assert list(named) == ["x", "other", "ids"]
    assert named["ids"] is ids
    assert not torch.equal(named["x"], named["other"])
    with pytest.raises(TypeError, match=r"needs a floating-point input.*guide_inputs"):
        noise({"ids": ids})
    assert not torch.equal(gaussian_noise(seed=0)(x), gaussian_noise(seed=1)(x))


def test_an_example_is_transformed_once_and_moves_no_random_state():
    x, _ = batch()
    target, guide = Net(1, 12, seed=0), nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 4))
    state = torch.get_rng_state()
    guidance = Guidance(
        target, guide, example=x, guide_transform=lambda x: torch.randn_like(x[:, ::2])
    )
    assert guidance.plan(x).rows[0].guide_shape == (N, 9)
    assert torch.equal(torch.get_rng_state(), state)


# --- gradients that reach the guide -------------------------------------------------------------


def test_a_stale_gradient_does_not_change_the_guide():
    """An optimizer over a parent of both networks, and a guide that was trained before."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    F.cross_entropy(guide(x), y).backward()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    guidance = Guidance(target, guide, release_at=1)
    assert not guide.training
    for _ in range(2):
        assert not any(p.requires_grad for p in guide.parameters())
        assert all(p.grad is None for p in guide.parameters())
        step(target, guidance, x, y, optimizer)
        assert guidance.released
    assert not guide.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_that_reached_the_guide_is_dropped():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    guide.requires_grad_(True)
    F.cross_entropy(guide(x), y).backward()
    step(target, guidance, x, y)
    assert all(p.grad is None for p in guide.parameters())


def test_a_guide_is_told_from_others_by_its_tensors():
    def digest(mode="eval", seed=0, change=lambda guide: None):
        torch.manual_seed(seed)
        guide = nn.Sequential(nn.Linear(60, 40), nn.BatchNorm1d(40), nn.Linear(40, 3))
        change(guide)
        return digest_of_guide(FrozenGuide(guide, mode))

    def moved(guide):
        guide[1].running_mean += 1

    def sparse(guide):
        guide.register_buffer("graph", torch.eye(3).to_sparse())

    def later(guide):
        with torch.no_grad():
            guide[0].weight[-1, -1] += 1

    def few(guide):
        with torch.no_grad():
            guide[2].bias[-1] += 1

    assert digest() == digest() != digest(seed=1)
    assert digest(change=moved) != digest() != digest(change=few)
    # The batch's statistics are used in place of these; of large tensors the beginning counts.
    assert digest("batch_stats", change=moved) == digest("batch_stats")
    assert digest(change=later) == digest() == digest(change=sparse)
    assert digest(change=lambda guide: guide.to("meta")) != digest()
    wide = nn.Conv2d(64, 64, 3).to(memory_format=torch.channels_last)
    values = digest_of_guide(FrozenGuide(wide))
    with torch.no_grad():
        wide.weight[0, 0] += 1
    assert digest_of_guide(FrozenGuide(wide)) != values


def test_of_parts_of_a_guide_nothing_is_compared():
    class FullyShardedDataParallel(nn.Module):
        """What torch's wrapper is called: its parameters are a process's part."""

    guide = nn.Sequential(FullyShardedDataParallel(), nn.Linear(3, 2))
    assert digest_of_guide(FrozenGuide(guide)) == ""
