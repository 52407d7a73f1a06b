"""Guidance: the loss and its gradient, pairs, the guide, release, state and logs."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyguide import reference
from pyguide.distances import LinearCKA
from pyguide.guidance import Guidance

N = 48


class _Net(nn.Module):
    """Linear, BatchNorm, ReLU, Dropout blocks and a head."""

    def __init__(self, depth: int, width: int, seed: int, dropout: float = 0.1):
        super().__init__()
        torch.manual_seed(seed)
        widths = [10] + [width] * depth
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N, 10, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(4, (N,), generator=generator)


def _step(target, guidance, x, y, optimizer=None) -> torch.Tensor:
    with guidance.capture():
        logits = target(x)
    loss = F.cross_entropy(logits, y) + guidance.loss(x)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    guidance.step()
    return loss.detach()


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class _Calls:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, module, args) -> None:
        self.count += 1


def _by_hand(model: _Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the Linear layers, from the layers' own functions; no dropout."""
    outputs = {}
    for i, block in enumerate(model.blocks):
        outputs[f"blocks.{i}.0"] = x = block[0](x)
        x = block[2](block[1](x))
    outputs["head"] = model.head(x)
    return outputs


# --- value and gradient ---------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cka", "debiased_cka", LinearCKA(debiased=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_on_one_target_layer_add_up(distance, dtype, relative_error):
    """Value and parameter gradients against float64 reference."""
    pairs = [("blocks.1.0", "blocks.0.0"), ("blocks.1.0", "blocks.2.0"), ("blocks.0.0", "head")]
    x, _ = _batch(dtype)
    target = _Net(2, 12, seed=0, dropout=0.0).to(dtype)
    guide = _Net(3, 9, seed=1).to(dtype)

    exact, exact_guide = _Net(2, 12, seed=0, dropout=0.0).double(), _Net(3, 9, seed=1).double()
    ts, gs = _by_hand(exact, x.double()), _by_hand(exact_guide.eval(), x.double())
    expected = 0.7 * sum(
        1 - reference.cka(ts[t], gs[g].detach(), debiased=distance != "cka") for t, g in pairs
    )
    expected.backward()

    guidance = Guidance(target, guide, pairs=pairs, distance=distance, weight=0.7)
    with guidance.capture():
        target(x)
    loss = guidance.loss(x)
    loss.backward()

    assert loss.shape == ()
    assert loss.dtype is dtype
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for name, truth in exact.named_parameters():
        gradient = target.get_parameter(name).grad
        if truth.grad is None:
            assert gradient is None, name
        elif name.startswith("blocks.") and name.endswith(".0.bias"):
            # CKA is centred and the next layer is a BatchNorm: the exact gradient is 0.
            scale = target.get_parameter(name.replace("bias", "weight")).grad.norm()
            assert gradient.norm() < tolerance * scale, name
        else:
            assert relative_error(gradient, truth.grad) < tolerance, name
    assert target.blocks[0][1].weight.grad is not None


def test_guidance_brings_the_layers_together():
    x, y = _batch()
    target, guide = _Net(3, 12, seed=0), _Net(3, 16, seed=1)
    guidance = Guidance(target, guide, weight=5.0)
    optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)
    _step(target, guidance, x, y, optimizer)
    before = guidance.last.sum().item()
    for _ in range(60):
        _step(target, guidance, x, y, optimizer)
    assert guidance.last.sum().item() < 0.6 * before


def test_guide_inputs_replace_x():
    x, _ = _batch()
    noise = torch.randn(N, 10, generator=torch.Generator().manual_seed(3))
    target, guide = _Net(1, 12, seed=0), _Net(1, 9, seed=1)
    guidance = Guidance(target, guide, pairs=[("blocks.0.0", "blocks.0.0")])
    with guidance.capture():
        target(x)
    expected = 1 - reference.cka(
        target.blocks[0][0](x).double(), guide.blocks[0][0](noise).double()
    )
    assert guidance.loss(x, guide_inputs=noise).item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_target_forward_and_one_guide_forward_a_step():
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(3, 9, seed=1)
    target_calls, guide_calls = _Calls(target), _Calls(guide)
    guidance = Guidance(target, guide)
    for _ in range(3):
        _step(target, guidance, x, y)
    assert (target_calls.count, guide_calls.count) == (3, 3)
    assert target.blocks[0][1].num_batches_tracked == 3


def test_eval_gives_the_value():
    x, _ = _batch()
    target, guide = _Net(2, 12, seed=0).eval(), _Net(2, 9, seed=1).eval()
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    with torch.no_grad():
        with guidance.capture():
            target(x)
        loss = guidance.loss(x)
        ts, gs = _by_hand(target, x), _by_hand(guide, x)
    expected = 1 - reference.cka(ts["blocks.1.0"].double(), gs["blocks.0.0"].double())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_autocast_loses_nothing_beyond_the_activations(relative_error):
    """The distance of bfloat16 activations is as exact as that of float32 ones."""
    x, _ = _batch()
    target, guide = _Net(2, 12, seed=0, dropout=0.0), _Net(2, 9, seed=1).eval()
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
        guide_activations = _by_hand(guide, x)["blocks.0.0"]
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


def test_micro_batches_accumulate():
    """One capture and loss a micro-batch; step() counts optimizer steps."""
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0, dropout=0.0), _Net(2, 9, seed=1)
    guidance = Guidance(target, guide, release_at=1)
    gradients = []
    for _ in range(2):
        with guidance.capture():
            logits = target(x)
        (F.cross_entropy(logits, y) + guidance.loss(x)).backward()
        gradients.append(target.blocks[0][0].weight.grad.clone())
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    assert not guidance.released
    guidance.step()
    assert guidance.released


# --- pairs ------------------------------------------------------------------------------------


def test_even_pairs_spread_over_execution_order():
    x, y = _batch()
    target, guide = _Net(6, 12, seed=0), _Net(3, 9, seed=1)
    # Registered last to first: execution order is what counts.
    guide._modules = dict(reversed(guide._modules.items()))
    expected = [
        ("blocks.0.0", "blocks.0.0"),
        ("blocks.3.0", "blocks.1.0"),
        ("blocks.5.0", "blocks.2.0"),
    ]
    lazily = Guidance(target, guide)
    assert lazily.pairs is None
    _step(target, lazily, x, y)
    assert lazily.pairs == expected
    assert _hooks(target) == _hooks(guide) == 3
    lazily.close()
    assert Guidance(target, guide, example=x).pairs == expected


def test_even_pairs_a_layer_with_two_paths_once():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.out = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.layers = nn.ModuleList([self.fc1, self.fc2, self.out])

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            return self.layers[-1](x)

    x, _ = _batch()
    target, guide = Aliased(), Aliased()
    lazily = Guidance(target, guide)
    with lazily.capture():
        target(x)
    lazily.loss(x)
    assert lazily.pairs == [("fc1", "fc1"), ("fc2", "fc2")]
    assert Guidance(target, guide, example=x).pairs == lazily.pairs


def test_even_candidates_of_a_convnet_and_a_recurrent_net():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 6)
            self.norm = nn.LayerNorm(6)
            self.rnn = nn.GRU(6, 6, batch_first=True)
            self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
            self.shared = nn.Linear(6, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            h, _ = self.rnn(self.norm(self.embed(x.transpose(1, 2))))
            h, _ = self.mix(h, h, h)
            return self.head(self.shared(self.shared(h))[:, -1])

    convnet = nn.Sequential(
        nn.Conv1d(1, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.Conv1d(1, 1, 1),
        nn.AdaptiveAvgPool1d(3),
    )
    convnet.insert(7, nn.Unflatten(1, (1, 5)))
    x = torch.randn(N, 1, 10)
    expected = [("embed", "0"), ("rnn", "4"), ("mix", "6")]
    target = Recurrent()
    assert Guidance(target, convnet, example=x).pairs == expected
    guidance = Guidance(target, convnet)
    with guidance.capture():
        target(x)
    guidance.loss(x)
    assert guidance.pairs == expected


def test_even_without_candidates_raises():
    x, _ = _batch()
    target = nn.Sequential(nn.Linear(10, 4))
    guidance = Guidance(target, _Net(2, 9, seed=1))
    with guidance.capture():
        target(x)
    with pytest.raises(RuntimeError, match="no layer to pair in the target"):
        guidance.loss(x)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("blocks.1.O", "head"), r"the target has no layer 'blocks\.1\.O'; did you mean 'blocks"),
        (("head", "heat"), r"the guide has no layer 'heat'; did you mean 'head'"),
        (("head", ""), "the guide has no layer ''"),
        (("head", "zzzzzzzz"), r"pyguide\.list_layers"),
        (("head",), "a pair is two strings"),
        ("hd", "a pair is two strings"),
        ((0, 0), r"a pair is two strings.*got \(0, 0\)"),
        (0, "a pair is two strings"),
    ],
)
def test_bad_pairs_raise(pair, message):
    with pytest.raises(ValueError, match=message):
        Guidance(_Net(2, 12, seed=0), _Net(2, 9, seed=1), pairs=[pair])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs is empty"),
        ({"pairs": "odd"}, "pairs must be .*'odd'"),
        ({"pairs": 5}, "pairs must be .*5"),
        ({"release_at": -1}, "release_at must be a whole number of steps >= 0, got -1"),
        ({"release_at": 2.5}, "release_at must be a whole number of steps >= 0, got 2.5"),
        ({"release_at": "5"}, "release_at must be a whole number of steps >= 0, got '5'"),
        ({"weight": float("nan")}, "weight must be finite, got nan"),
        ({"distance": "cca"}, "unknown distance"),
    ],
)
def test_other_bad_arguments_raise(arguments, message):
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    with pytest.raises(ValueError, match=message):
        Guidance(target, guide, **arguments)
    assert _hooks(target) == _hooks(guide) == 0
    assert guide.training


def test_a_guide_that_belongs_to_the_target_raises():
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    with pytest.raises(ValueError, match="shares modules or parameters"):
        Guidance(target, target)
    with pytest.raises(ValueError, match="shares modules or parameters"):
        Guidance(nn.ModuleDict({"net": target, "guide": guide}), guide)


class _Wrapped(nn.Module):
    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.add_module(name, module)
        self.name = name

    def forward(self, *args):
        return getattr(self, self.name)(*args)


@pytest.mark.parametrize("outer", ["module", "_orig_mod", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("inner", [None, "_orig_mod", "_checkpoint_wrapped_module"])
def test_paths_ignore_wrapper_prefixes(outer, inner):
    x, _ = _batch()
    plain = _Net(3, 12, seed=0)
    if inner is not None:
        plain.blocks[1] = _Wrapped(inner, plain.blocks[1])
    target, guide = _Wrapped(outer, plain), _Net(3, 9, seed=1)
    written = f"{outer}.blocks.1.{inner}.0" if inner else f"{outer}.blocks.1.0"
    for path in ("blocks.1.0", "module.blocks.1.0", written):
        guidance = Guidance(target, guide, pairs=[(path, "module.blocks.0.0")])
        assert guidance.pairs == [("blocks.1.0", "blocks.0.0")]
        with guidance.capture():
            target(x)
        assert 0 < guidance.loss(x).item() < 1
        guidance.close()
    assert [t for t, _ in Guidance(target, guide, example=x).pairs] == [
        "blocks.0.0",
        "blocks.1.0",
        "blocks.2.0",
    ]


# --- the guide ----------------------------------------------------------------------------------


def test_the_guide_never_changes():
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    guidance = Guidance(target, guide)
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    losses, modes = [], []
    guide.register_forward_pre_hook(
        lambda module, args: modes.append(
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
    )
    for _ in range(3):
        # A parent's train() and requires_grad_() reach a guide that is held beside the target.
        guide.train()
        guide.requires_grad_(True)
        losses.append(_step(target, guidance, x, y, optimizer))
    assert losses[0] != losses[2]
    assert modes == [(False, False)] * 3
    assert not any(module.training for module in guide.modules())
    assert not any(p.requires_grad for p in guide.parameters())
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in guide.parameters())


def test_a_stale_gradient_does_not_change_the_guide():
    """An optimizer over a parent of both networks, and a guide that was trained before."""
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    F.cross_entropy(guide(x), y).backward()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    optimizer = torch.optim.SGD([*target.parameters(), *guide.parameters()], lr=0.5)
    guidance = Guidance(target, guide, release_at=1)
    assert not guide.training
    for _ in range(2):
        assert not any(p.requires_grad for p in guide.parameters())
        assert all(p.grad is None for p in guide.parameters())
        _step(target, guidance, x, y, optimizer)
        assert guidance.released
    assert not guide.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_that_reached_the_guide_is_dropped():
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    guide.requires_grad_(True)
    F.cross_entropy(guide(x), y).backward()
    _step(target, guidance, x, y)
    assert all(p.grad is None for p in guide.parameters())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class _Parent(nn.Module):
    """Holds the target, and the guide beside it."""

    def __init__(self, target: nn.Module, guide: nn.Module):
        super().__init__()
        self.target, self.guide = target, guide

    def forward(self, x):
        return self.target(x)


@pytest.mark.parametrize("find_unused_parameters", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_ddp_gives_the_same_gradient(find_unused_parameters, held, process_group):
    x, y = _batch()
    gradients = []
    for distributed in (False, True):
        target, guide = _Net(2, 12, seed=0, dropout=0.0), _Net(2, 9, seed=1)
        model = target
        if held:
            model, guidance = _Parent(target, guide), Guidance(target, guide)
        if distributed:
            model = nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=find_unused_parameters
            )
        if not held:
            guidance = Guidance(model, guide)
        for _ in range(2):  # DDP says in the second pass what went wrong in the first.
            _step(model, guidance, x, y)
        gradients.append([p.grad for p in target.parameters()])
        assert len(guidance.pairs) == 2
    for alone, ddp in zip(*gradients, strict=True):
        torch.testing.assert_close(ddp, alone)


def test_the_target_state_dict_is_untouched():
    target = _Net(2, 12, seed=0)
    keys, modules = list(target.state_dict()), len(list(target.modules()))
    guidance = Guidance(target, _Net(2, 9, seed=1))
    assert not isinstance(guidance, nn.Module)
    assert list(target.state_dict()) == keys
    assert len(list(target.modules())) == modules


# --- release and close --------------------------------------------------------------------------


def _train(release_at: int | None, steps: int) -> tuple[_Net, _Net, Guidance, _Calls]:
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    calls = _Calls(guide)
    guidance = Guidance(target, guide, release_at=release_at)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(steps):
        _step(target, guidance, x, y, optimizer)
    return target, guide, guidance, calls


def test_release_ends_all_cost():
    target, guide, guidance, calls = _train(release_at=2, steps=5)
    assert calls.count == 2
    assert guidance.released
    assert guidance.steps == 5
    assert _hooks(target) == _hooks(guide) == 0
    with guidance.capture():
        target(_batch()[0])
    loss = guidance.loss(_batch()[0])
    assert loss.shape == ()
    assert loss.item() == 0
    assert not loss.requires_grad
    assert loss.device == next(target.parameters()).device
    assert guidance.log_dict() == {}


def test_released_device_is_the_targets():
    target, guide = nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta")
    assert Guidance(target, guide, release_at=0).loss(None).device.type == "meta"


def test_release_at_zero_is_plain_training():
    target, _, guidance, calls = _train(release_at=0, steps=3)
    assert calls.count == 0
    assert guidance.released
    plain = _Net(2, 12, seed=0)
    x, y = _batch()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(3):
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(target.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_release_by_hand_between_capture_and_loss():
    x, _ = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    with guidance.capture():
        target(x)
    guidance.release()
    assert guidance.loss(x).item() == 0
    assert _hooks(target) == _hooks(guide) == 0


def test_close_removes_every_hook():
    x, _ = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    other = Guidance(target, guide, pairs=[("head", "head")])
    guidance = Guidance(target, guide)
    assert _hooks(target) == 3 + 1
    guidance.close()
    assert _hooks(target) == _hooks(guide) == 1
    with pytest.raises(RuntimeError, match="closed"):
        guidance.loss(x)
    with pytest.raises(RuntimeError, match="closed"), guidance.capture():
        pass
    other.close()
    assert _hooks(target) == _hooks(guide) == 0


# --- state and logs -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_across_the_release_step(stop):
    """Stopped before, at and after release, a run goes on as if it had not stopped."""
    straight, *_ = _train(release_at=2, steps=5)
    target, _, guidance, _ = _train(release_at=2, steps=stop)
    state, random = guidance.state_dict(), torch.get_rng_state()
    assert state["pairs"] == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]

    resumed, guide = _Net(2, 12, seed=9), _Net(2, 9, seed=1)
    resumed.load_state_dict(target.state_dict())
    calls = _Calls(guide)
    continued = Guidance(resumed, guide, release_at=2)
    continued.load_state_dict(state)
    assert (continued.steps, continued.released) == (stop, stop >= 2)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1)
    torch.set_rng_state(random)
    x, y = _batch()
    for _ in range(5 - stop):
        _step(resumed, continued, x, y, optimizer)
    assert calls.count == max(0, 2 - stop)
    for p, q in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(p, q)


def test_loading_an_earlier_state_takes_guidance_up_again():
    target, _, guidance, calls = _train(release_at=3, steps=1)
    state = guidance.state_dict()
    guidance.release()
    guidance.load_state_dict(state)
    _step(target, guidance, *_batch())
    assert calls.count == 2
    assert guidance.steps == 2


def test_a_state_that_does_not_fit_changes_nothing():
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    with guidance.capture():
        target(x)
    bad = {"step": 4, "released": False, "pairs": [("blocks.0.0", "nowhere")]}
    with pytest.raises(ValueError, match="the guide has no layer 'nowhere'"):
        guidance.load_state_dict(bad)
    with pytest.raises(KeyError, match="released"):
        guidance.load_state_dict({"step": 4, "pairs": [("head", "head")]})
    assert guidance.loss(x).requires_grad
    assert guidance.pairs == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]
    assert guidance.steps == 0
    _step(target, guidance, x, y)
    assert guidance.steps == 1


def test_state_of_other_pairs_raises():
    *_, guidance, _ = _train(release_at=None, steps=1)
    other = Guidance(_Net(2, 12, seed=0), _Net(2, 9, seed=1), pairs=[("head", "head")])
    with pytest.raises(ValueError, match="the state has the pairs"):
        other.load_state_dict(guidance.state_dict())


def test_logs():
    x, _ = _batch()
    target, guide = _Net(2, 12, seed=0), _Net(2, 9, seed=1)
    pairs = [("blocks.0.0", "head"), ("blocks.1.0", "blocks.0.0")]
    guidance = Guidance(target, guide, pairs=pairs, distance="debiased_cka", weight=3.0)
    assert guidance.last is None
    assert guidance.log_dict() == {}
    with guidance.capture():
        target(x)
    loss = guidance.loss(x)
    logs = guidance.log_dict()
    assert list(logs) == [
        "guidance/loss",
        "guidance/debiased_cka/blocks.0.0~head",
        "guidance/debiased_cka/blocks.1.0~blocks.0.0",
    ]
    assert all(isinstance(v, torch.Tensor) and v.shape == () for v in logs.values())
    assert not any(v.requires_grad for v in logs.values())
    values = [v.item() for v in logs.values()]
    assert values[0] == loss.item() == pytest.approx(3 * sum(values[1:]), rel=1e-6)
    assert guidance.last.tolist() == values[1:]


def test_a_degenerate_layer_is_named_once():
    x, y = _batch()
    target, guide = _Net(2, 12, seed=0, dropout=0.0), _Net(2, 9, seed=1)
    nn.init.zeros_(target.blocks[1][0].weight)
    pairs = [("blocks.0.0", "head"), ("blocks.1.0", "blocks.0.0")]
    guidance = Guidance(target, guide, pairs=pairs)
    with pytest.warns(UserWarning, match="degenerate") as caught:
        _step(target, guidance, x, y)
    assert len(caught) == 1
    assert "'blocks.1.0'" in str(caught[0].message)
    assert "'blocks.0.0'" in str(caught[0].message)
    assert guidance.last[1].item() == 1.0
    assert all(torch.isfinite(p.grad).all() for p in target.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _step(target, guidance, x, y)


@pytest.mark.cuda
def test_a_degenerate_layer_on_a_gpu_is_named_without_a_sync():
    x, y = (t.cuda() for t in _batch())
    target, guide = _Net(2, 12, seed=0, dropout=0.0).cuda(), _Net(2, 9, seed=1).cuda()
    nn.init.zeros_(target.blocks[1][0].weight)
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(target, guidance, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match=r"'blocks\.1\.0'.*degenerate"):
        _step(target, guidance, x, y)
