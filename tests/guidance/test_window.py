"""The capture window: what it records, and what is left behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks import N, distance, guided, mlp
from torch import nn

from pyguide.guidance import Guidance, Pair


def test_only_the_window_records(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    target(x + 100)
    with guidance.capture():
        target(x)
    target(x - 100)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_loss_needs_its_own_capture(x):
    target = mlp(6, 8, 3)
    guidance = Guidance(target, mlp(6, 5, 3), pairs=[("0", "0")])
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)
    with guidance.capture():
        target(x)
        with pytest.raises(RuntimeError, match="after the `with"):
            guidance.loss(x)
        with pytest.raises(RuntimeError, match="already open"), guidance.capture():
            pass
    guidance.loss(x)
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)


def test_an_exception_in_the_window_leaves_a_clean_state(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])

    kept: list[weakref.ref] = []

    def fail(module, args, output):
        kept.append(weakref.ref(output))
        raise ZeroDivisionError

    failing = target[0].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), guidance.capture():
        target(x + 100)
    failing.remove()
    gc.collect()
    assert kept[0]() is None
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)
    target(x + 100)
    with guidance.capture():
        target(x)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_an_exception_in_the_guide_leaves_a_clean_state(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    kept, of_guide = _watch(target), _watch(guide)
    with guidance.capture():
        target(x)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        guidance.loss(x, guide_inputs=(torch.randn(N, 4),))
    gc.collect()
    assert kept[0]() is None
    guide(x + 100)  # not recorded
    assert of_guide[0]() is None
    with guidance.capture():
        target(x)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_an_exception_in_extract_leaves_a_clean_state(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    failing = [True]

    def extract(output):
        if failing:
            raise ZeroDivisionError
        return output

    guidance = Guidance(target, guide, pairs=[Pair("0", "0", extract=extract)])
    with pytest.raises(ZeroDivisionError), guidance.capture():
        target(x + 100)
    target(x)
    failing.clear()
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)
    with guidance.capture():
        target(x)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_a_new_window_replaces_an_unused_one(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    with guidance.capture():
        target(x + 100)
    with guidance.capture():
        target(x)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def _watch(model: nn.Sequential) -> list[weakref.ref]:
    """Weak references to what the Linear layers but the last return from now on."""
    kept: list[weakref.ref] = []
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda m, args, output: kept.append(weakref.ref(output)))
    return kept


@pytest.mark.parametrize("pairs", ["even", "first:1", "paper", [("*", "*")], [("2", "0")]])
def test_loss_frees_the_activations(x, pairs):
    target, guide = mlp(6, 8, 7, 3), mlp(6, 5, 4, 3)
    guidance = Guidance(target, guide, pairs=pairs)
    of_target, of_guide = _watch(target), _watch(guide)
    with guidance.capture():
        target(x)
    assert of_target[1]() is not None
    loss = guidance.loss(x)
    loss.backward()
    del loss
    gc.collect()
    assert len(of_target) == len(of_guide) == 2
    assert not any(reference() is not None for reference in of_target + of_guide)


def test_hooks_do_not_change_outputs(x):
    target = mlp(6, 8, 3)
    before = target(x)
    guidance = Guidance(target, mlp(6, 5, 3))
    with guidance.capture():
        inside = target(x)
    assert torch.equal(before, inside)
    assert torch.equal(before, target(x))


def test_a_layer_that_did_not_run_raises_by_name(x):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(RuntimeError, match="nothing was captured from 'unused' of the target"):
        guided(Skips(), mlp(6, 5, 3), x, pairs=[("used", "0"), ("unused", "0")])


@pytest.mark.parametrize("side", ["target", "guide"])
def test_inplace_change_after_capture_raises(x, side):
    models = {"target": mlp(6, 8, 3), "guide": mlp(6, 5, 3)}
    models[side] = mlp(6, 8, 3, inplace=True)
    with pytest.raises(RuntimeError, match=rf"'0' of the {side} was modified in place.*inplace=F"):
        guided(**models, x=x, pairs=[("0", "0")])
    loss = guided(**models, x=x, pairs=[("1", "1")])
    activations = [m[1](m[0](x)) for m in models.values()]
    assert loss == pytest.approx(distance(*activations), abs=1e-6)


def test_inplace_change_in_inference_mode_is_not_what_is_compared(x):
    models = [mlp(6, 8, 3), mlp(6, 5, 3, seed=1)]
    expected = guided(*models, x, pairs=[("0", "0")])
    models[0][1].inplace = True
    with torch.inference_mode():
        assert guided(*models, x, pairs=[("0", "0")]) == pytest.approx(expected, abs=1e-6)
