"""Copies, pickles and exports of a hooked network."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from networks import distance, mlp

from pyguide.guidance import Guidance


def test_a_deepcopy_does_not_record(x):
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    early = copy.deepcopy(target)
    with guidance.capture():
        target(x)
        early(x + 100)
        # The target's activations, which cannot be copied, are held by now.
        copy.deepcopy(target)(x + 100)
    expected = distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_guidance_itself_cannot_be_copied(duplicate):
    guidance = Guidance(mlp(6, 8, 3), mlp(6, 5, 3))
    with pytest.raises(TypeError, match="make one for the copied networks"):
        duplicate(guidance)


def test_a_hooked_target_can_be_pickled(x):
    target = mlp(6, 8, 3)
    guidance = Guidance(target, mlp(6, 5, 3), pairs=[("0", "0")])
    with guidance.capture():
        target(x)
    loaded = pickle.loads(pickle.dumps(target))
    assert torch.equal(loaded(x), target(x))
    buffer = io.BytesIO()
    torch.save(target, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), target(x))
    guidance.loss(x)


def test_export_while_attached_and_after(x):
    target = mlp(6, 8, 3).eval()
    guidance = Guidance(target, mlp(6, 5, 3), pairs=[("0", "0")])
    with torch.no_grad():
        assert torch.equal(torch.export.export(target, (x,)).module()(x), target(x))
        guidance.release()
        assert torch.equal(torch.export.export(target, (x,)).module()(x), target(x))
