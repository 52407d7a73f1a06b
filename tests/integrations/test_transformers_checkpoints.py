"""GuidedTrainer: the state of a training, in its checkpoints and its log."""

from __future__ import annotations

import importlib

import pytest
import torch
from compared_trainings import Forwards, assert_same_weights
from guided_tagger import PAIRS, Guide, Tagger, TaggerByItems, adam, arguments, data, guided_trainer
from transformers import Trainer

from pyguide import Guidance
from pyguide.guidance import schedules


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_training_is_the_uninterrupted_one(stop, tmp_path):
    """Stopped before, at and after the release, with dropout, in the middle of an epoch."""
    samples = data(8)
    options = {"release_at": 4, "weight": schedules.linear(1.0, 0.0, steps=6)}

    def run(folder, steps, resume=None, **more):
        model, guide = Tagger(dropout=0.2).double(), Guide().double()
        forwards = Forwards(guide)
        guidance = Guidance(model, guide, PAIRS, **options)
        trainer = guided_trainer(
            tmp_path / folder, model, guidance, samples, max_steps=steps, **more
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, forwards.count, guidance

    straight, count, _ = run("straight", 7)
    _, before, _ = run("stopped", stop, save_strategy="steps", save_steps=stop)
    model, after, guidance = run("stopped", 7, resume=True)
    assert_same_weights(model, straight)
    assert (count, before, after) == (4, min(stop, 4), max(4 - stop, 0))
    assert guidance.steps == 7
    assert guidance.released


def test_a_checkpoint_has_the_guidance_of_its_step_and_the_keys_of_the_model(tmp_path):
    model = Tagger()
    keys = set(model.state_dict())
    guidance = Guidance(model, Guide(), "even", guide_mode="batch_stats")
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    trainer = guided_trainer(tmp_path, model, guidance, data(8), **options)
    trainer.train()
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        state = torch.load(folder / "guidance.pt", weights_only=True)
        assert state["step"] == step
        saved = importlib.import_module("safetensors.torch").load_file(folder / "model.safetensors")
        assert set(saved) == keys
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "guidance.pt").exists()


def test_training_again_begins_again(tmp_path):
    model, forwards = Tagger(), Forwards(guide := Guide())
    guidance = Guidance(model, guide, PAIRS, release_at=5)
    trainer = guided_trainer(tmp_path, model, guidance, data(3), logging_steps=2)
    for total in (3, 6):
        trainer.train()
        assert forwards.count == total
        assert guidance.steps == 3
        # The third step's, of which there was no log, must not be in the next training's.
        log = trainer.state.log_history[0]
        assert log["loss"] == pytest.approx(log["guidance/loss"] + log["guidance/task_loss"])


def test_logs_are_means_since_the_last_log_as_of_loss(tmp_path):
    """The last optimizer step of an epoch, the fourth, has one batch only."""
    samples = data(7)
    logs = {}
    for every in (1, 4):
        model = TaggerByItems().double()
        guidance = Guidance(model, Guide().double(), PAIRS, weight=0.5, release_at=4)
        trainer = guided_trainer(
            tmp_path,
            model,
            guidance,
            samples,
            num_train_epochs=2,
            logging_steps=every,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        logs[every] = [log for log in trainer.state.log_history if "loss" in log]
    distances = [f"guidance/cka/{target}~{guide}" for target, guide in PAIRS]
    names = {"guidance/loss", "guidance/task_loss", "guidance/weight", "guidance/step", *distances}
    assert [set(log) >= names for log in logs[1]] == [True] * 4 + [False] * 4
    assert not any("guidance" in name for log in logs[1][4:] for name in log)
    for log in (*logs[1][:4], logs[4][0]):
        # Trainer's sum of losses is float32.
        assert log["loss"] == pytest.approx(log["guidance/loss"] + log["guidance/task_loss"])
        assert log["guidance/loss"] == pytest.approx(0.5 * sum(log[d] for d in distances))
        assert log["guidance/step"] == log["step"] - 1
    for name in names - {"guidance/step"}:
        mean = sum(log[name] for log in logs[1][:4]) / 4
        assert logs[4][0][name] == pytest.approx(mean, rel=1e-12)


def test_a_checkpoint_without_guidance_says_what_to_do(tmp_path):
    model = Tagger()
    options = {"save_strategy": "steps", "save_steps": 1}
    plain = {"args": arguments(tmp_path, **options), "train_dataset": data(1)}
    Trainer(model=model, **plain, optimizers=adam(model)).train()
    guidance = Guidance(model, Guide(), PAIRS)
    trainer = guided_trainer(tmp_path, model, guidance, data(1), max_steps=2, **options)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-1 has no guidance\.pt, so no Guided"):
        trainer.train(resume_from_checkpoint=True)
    torch.save(guidance.state_dict(), tmp_path / "checkpoint-1" / "guidance.pt")
    trainer.train(resume_from_checkpoint=True)
    assert guidance.steps == 1
    with pytest.raises(ValueError, match=r"Can't find a valid checkpoint at .*nowhere"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
