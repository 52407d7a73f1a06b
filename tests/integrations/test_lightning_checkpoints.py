"""GuidanceCallback: its state in checkpoints, and what another fit goes on from."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from compared_trainings import Forwards, assert_same_weights
from guided_classifier import (
    IGNORED_WARNINGS,
    Classifier,
    batches,
    loader,
    trainer,
    untrained_guide,
)

from pyguide.guidance import schedules
from pyguide.integrations.lightning import GuidanceCallback

pytestmark = IGNORED_WARNINGS


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_fit_is_the_uninterrupted_one(stop, tmp_path):
    """Stopped before, at and after the release."""
    data = loader(batches(1) * 8)
    straight, first, second = (Classifier().double() for _ in range(3))
    guides = [untrained_guide() for _ in range(3)]
    forwards = [Forwards(guide) for guide in guides]
    callbacks = [
        GuidanceCallback(guide, weight=schedules.linear(1.0, 0.0, steps=6), release_at=4)
        for guide in guides
    ]
    trainer(callbacks[0], max_steps=8).fit(straight, data)
    stopped = trainer(callbacks[1], max_steps=stop)
    stopped.fit(first, data)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer(callbacks[2], max_steps=8).fit(second, data, ckpt_path=tmp_path / "stopped.ckpt")

    assert_same_weights(second, straight)
    assert [f.count for f in forwards] == [4, min(stop, 4), max(4 - stop, 0)]
    assert callbacks[2].guidance.steps == 8
    assert callbacks[2].guidance.released


def test_a_checkpoint_in_the_middle_has_the_step_and_the_keys_of_the_module(tmp_path):
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=2)
    callback = GuidanceCallback(untrained_guide(), guide_mode="batch_stats")
    fit = trainer(checkpoints, callback, max_epochs=1, enable_checkpointing=True)
    module = Classifier()
    keys = list(module.state_dict())
    fit.fit(module, loader(batches(5)))
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 2
    for path, step in zip(saved, (2, 4), strict=True):
        checkpoint = torch.load(path, weights_only=True)
        assert list(checkpoint["state_dict"]) == keys
        assert checkpoint["callbacks"][callback.state_key]["step"] == step
    assert list(module.state_dict()) == keys


def test_a_checkpoint_from_before_guidance_starts_it(tmp_path):
    data, module = loader(batches(2)), Classifier()
    before = trainer(max_epochs=1)
    before.fit(module, data)
    before.save_checkpoint(tmp_path / "before.ckpt")
    callback = GuidanceCallback(untrained_guide())
    trainer(callback, max_epochs=2).fit(module, data, ckpt_path=tmp_path / "before.ckpt")
    assert callback.guidance.steps == 2


def test_another_fit_goes_on():
    module, data = Classifier(), loader(batches(3))
    forwards = Forwards(guide := untrained_guide())
    callback = GuidanceCallback(guide, release_at=5)
    for epoch in (1, 2):
        trainer(callback, max_epochs=1).fit(module, data)
        assert callback.guidance.steps == 3 * epoch
    assert forwards.count == 5


def test_a_state_that_does_not_fit_leaves_no_hooks(tmp_path):
    data, module = loader(batches(1)), Classifier()
    first = trainer(GuidanceCallback(untrained_guide(), "last:1"), max_epochs=1)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    second = trainer(GuidanceCallback(untrained_guide(), "last:2"), max_epochs=2)
    with pytest.raises(ValueError, match="the state is of pairs='last:1'"):
        second.fit(module, data, ckpt_path=tmp_path / "first.ckpt")
    assert not any(m._forward_hooks for m in module.modules())
