"""The guidance term: value, gradient, and one forward pass of each network a step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from guided_training import Calls, N, Net, batch, by_hand, step
from networks import Layer, hooks
from torch import nn

from pyguide import reference
from pyguide.distances import LinearCKA
from pyguide.guidance import Guidance


@pytest.mark.parametrize("distance", ["cka", "debiased_cka", LinearCKA(debiased=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_on_one_target_layer_add_up(distance, dtype, relative_error):
    """Value and parameter gradients against float64 reference."""
    pairs = [("blocks.1.0", "blocks.0.0"), ("blocks.1.0", "blocks.2.0"), ("blocks.0.0", "head")]
    x, _ = batch(dtype)
    target = Net(2, 12, seed=0, dropout=0.0).to(dtype)
    guide = Net(3, 9, seed=1).to(dtype)

    exact, exact_guide = Net(2, 12, seed=0, dropout=0.0).double(), Net(3, 9, seed=1).double()
    ts, gs = by_hand(exact, x.double()), by_hand(exact_guide.eval(), x.double())
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
    x, y = batch()
    target, guide = Net(3, 12, seed=0), Net(3, 16, seed=1)
    guidance = Guidance(target, guide, weight=5.0)
    optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)
    step(target, guidance, x, y, optimizer)
    before = guidance.last.sum().item()
    for _ in range(60):
        step(target, guidance, x, y, optimizer)
    assert guidance.last.sum().item() < 0.6 * before


def test_guide_inputs_replace_x():
    x, _ = batch()
    noise = torch.randn(N, 10, generator=torch.Generator().manual_seed(3))
    target, guide = Net(1, 12, seed=0), Net(1, 9, seed=1)
    guidance = Guidance(target, guide, pairs=[("blocks.0.0", "blocks.0.0")])
    with guidance.capture():
        target(x)
    expected = 1 - reference.cka(
        target.blocks[0][0](x).double(), guide.blocks[0][0](noise).double()
    )
    assert guidance.loss(x, guide_inputs=noise).item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_target_forward_and_one_guide_forward_a_step():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(3, 9, seed=1)
    target_calls, guide_calls = Calls(target), Calls(guide)
    guidance = Guidance(target, guide)
    for _ in range(3):
        step(target, guidance, x, y)
    assert (target_calls.count, guide_calls.count) == (3, 3)
    assert target.blocks[0][1].num_batches_tracked == 3


def test_eval_gives_the_value():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0).eval(), Net(2, 9, seed=1).eval()
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    with torch.no_grad():
        with guidance.capture():
            target(x)
        loss = guidance.loss(x)
        ts, gs = by_hand(target, x), by_hand(guide, x)
    expected = 1 - reference.cka(ts["blocks.1.0"].double(), gs["blocks.0.0"].double())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_micro_batches_accumulate():
    """One capture and loss a micro-batch; step() counts optimizer steps."""
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs is empty"),
        ({"pairs": "odd"}, "pairs must be .*'odd'"),
        ({"pairs": 5}, "pairs must be .*5"),
        ({"release_at": -1}, "release_at must be a whole number >= 0, got -1"),
        ({"release_at": 2.5}, "release_at must be a whole number >= 0, got 2.5"),
        ({"release_at": "5"}, "release_at must be a whole number >= 0, got '5'"),
        ({"release_at": True}, "release_at must be a whole number >= 0, got True"),
        ({"align_only": -1}, "align_only must be a whole number >= 0, got -1"),
        ({"align_only": 5, "release_at": 4}, "align_only must not be after release_at=4, got 5"),
        ({"weight": "1"}, "weight must be a finite number, got '1'"),
        ({"weight": lambda step: float("inf")}, "the weight at step 0 must be a finite number"),
        ({"guide_mode": "train"}, "guide_mode must be one of .*'train'"),
        ({"guide_transform": 3}, "guide_transform must be callable, got 3"),
        ({"calibration_batches": 0}, "calibration_batches must be a whole number >= 1, got 0"),
        ({"weight": float("nan")}, "weight must be a finite number, got nan"),
        ({"distance": "cca"}, "unknown distance"),
    ],
)
def test_other_bad_arguments_raise(arguments, message):
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    with pytest.raises(ValueError, match=message):
        Guidance(target, guide, **arguments)
    assert hooks(target) == hooks(guide) == 0
    assert guide.training


def test_a_guide_that_belongs_to_the_target_raises():
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    with pytest.raises(ValueError, match="shares modules or parameters"):
        Guidance(target, target)
    with pytest.raises(ValueError, match="shares modules or parameters"):
        Guidance(nn.ModuleDict({"net": target, "guide": guide}), guide)


def test_a_guide_in_the_memory_of_the_target_raises():
    target, guide = Net(2, 12, seed=0), Net(2, 12, seed=1)
    Guidance(target, guide).close()
    guide.load_state_dict(target.state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"or their memory.*pass copy\.deepcopy\(guide\)"):
        Guidance(target, guide)
    Guidance(target, copy.deepcopy(guide)).close()
    # A guide on weights of the target that are not trained is fine, and so is a table of both.
    table = torch.randn(3)
    for network in (target, guide):
        network.requires_grad_(False).register_buffer("table", table)
    Guidance(target, guide)


@pytest.mark.parametrize(("distance", "least"), [("cka", 2), ("debiased_cka", 4), ("rsa", 3)])
def test_a_batch_of_too_few_samples_is_named(distance, least):
    target, guide = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 5))
    guidance = Guidance(target, guide, [("0", "0")], distance)
    for n in (least - 1, least):
        x = torch.randn(n, 3)
        with guidance.capture():
            target(x)
        if n == least:
            assert guidance.loss(x).isfinite()
            continue
        message = rf"'0' gave \({n}, 4\), and '{distance}' needs at least {least}.*drop_last=True"
        with pytest.raises(ValueError, match=message):
            guidance.loss(x)


def test_a_set_of_pairs_has_no_order():
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    with pytest.raises(ValueError, match=r"a set of pairs has another order.*give a list"):
        Guidance(target, guide, pairs={("a", "b")})


def test_a_layer_that_is_one_number_is_named():
    target = nn.Sequential(nn.Linear(3, 4), Layer(torch.mean))
    guide = nn.Sequential(nn.Linear(3, 4), Layer(torch.mean))
    guidance = Guidance(target, guide, [("1", "1")])
    x = torch.randn(8, 3)
    with guidance.capture():
        target(x)
    with pytest.raises(ValueError, match=r"must have shape \(n, \.\.\.\), got a scalar"):
        guidance.loss(x)
