"""GuidedTrainer: transformers.Trainer trains as the same steps in a plain loop do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from compared_trainings import Forwards, assert_same_weights
from guided_tagger import (
    BATCH,
    PAIRS,
    Guide,
    Tagger,
    TaggerByItems,
    arguments,
    data,
    guided_trainer,
    plain_loop,
    windows,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from pyguide import Guidance
from pyguide.guidance import schedules
from pyguide.integrations.transformers import GuidedTrainer


class Gradients(TrainerCallback):
    """The gradients of each optimizer step."""

    def __init__(self):
        self.steps: list[list[torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append([p.grad.clone() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", [Tagger, TaggerByItems])
@pytest.mark.parametrize(
    "options",
    [{"release_at": 4}, {"weight": schedules.linear(2.0, 0.0, steps=4)}, {"align_only": 2}],
    ids=["release", "linear", "align"],
)
def test_weights_are_those_of_a_plain_loop(kind, accumulate, options, tmp_path):
    """Seven batches: the last optimizer step of an epoch has one batch only."""
    samples, model, expected = data(7), kind().double(), kind().double()
    guidance = Guidance(model, Guide().double(), PAIRS, **options)
    trainer = guided_trainer(
        tmp_path,
        model,
        guidance,
        samples,
        num_train_epochs=2,
        gradient_accumulation_steps=accumulate,
    )
    trainer.train()
    by_hand = plain_loop(
        expected, Guide().double(), samples, epochs=2, accumulate=accumulate, **options
    )
    assert_same_weights(model, expected)
    assert guidance.steps == by_hand.steps == (14 if accumulate == 1 else 6)
    assert guidance.released == by_hand.released == ("release_at" in options)


def _by_tokens(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"].flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("loss", [None, _by_tokens], ids=["model's loss", "compute_loss_func"])
@pytest.mark.parametrize("kind", [Tagger, TaggerByItems])
def test_the_gradient_is_trainers_plus_the_mean_of_the_batches_guidance(kind, loss, tmp_path):
    samples, gradients = data(5), (Gradients(), Gradients())
    for guided, callback in zip((False, True), gradients, strict=True):
        model = kind().double()
        options = {
            "model": model,
            "args": arguments(tmp_path, gradient_accumulation_steps=3, learning_rate=0.0),
            "train_dataset": samples,
            "optimizers": (torch.optim.SGD(model.parameters(), lr=0.0), None),
            "callbacks": [callback],
            "compute_loss_func": loss,
        }
        if guided:
            guidance = Guidance(model, Guide().double(), PAIRS)
            GuidedTrainer(**options, guidance=guidance).train()
        else:
            Trainer(**options).train()

    model = kind().double()
    guidance = Guidance(model, Guide().double(), PAIRS)
    parameters = list(model.parameters())
    for window, task, both in zip(windows(samples, 3), *(g.steps for g in gradients), strict=True):
        terms = []
        for batch in window:
            with guidance.capture():
                model(batch["input_ids"])
            term = guidance.loss(batch["input_ids"], mask=batch["attention_mask"].bool())
            terms.append(torch.autograd.grad(term, parameters, materialize_grads=True))
        for ours, trainers, *of_batches in zip(both, task, *terms, strict=True):
            mean = torch.stack(of_batches).mean(dim=0)
            torch.testing.assert_close(ours, trainers + mean, rtol=1e-12, atol=1e-15)
    assert any(g.abs().sum() > 0 for g in terms[0])


class TaggerOfMeans(TaggerByItems):
    """Takes the number of items, and does not use it."""

    def task(self, logits, labels, num_items_in_batch=None):
        return super().task(logits, labels)


@pytest.mark.parametrize("scaled", [None, False])
def test_a_trainer_can_say_how_its_losses_are_scaled(scaled, tmp_path):
    """Trainer takes this model's losses for scaled unless it is told."""
    samples, gradients = data(3), Gradients()
    model = TaggerOfMeans().double()
    guidance = Guidance(model, Guide().double(), PAIRS)
    trainer = GuidedTrainer(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=3),
        train_dataset=samples,
        callbacks=[gradients],
        guidance=guidance,
    )
    trainer.loss_is_scaled_for_ga = scaled
    trainer.train()
    model = TaggerOfMeans().double()
    guidance = Guidance(model, Guide().double(), PAIRS)
    for batch in windows(samples, 3)[0]:
        with guidance.capture():
            logits = model(batch["input_ids"])["logits"]
        task = model.task(logits, batch["labels"]) / (1 if scaled is None else 3)
        term = guidance.loss(batch["input_ids"], mask=batch["attention_mask"].bool()) / 3
        (task + term).backward()
    expected = [p.grad for p in model.parameters()]
    torch.testing.assert_close(gradients.steps[0], expected, rtol=1e-12, atol=1e-15)


def test_only_training_runs_the_guide(tmp_path):
    samples, model = data(4), Tagger()
    forwards = Forwards(guide := Guide())
    guidance = Guidance(model, guide, PAIRS)
    target = Forwards(model)
    trainer = GuidedTrainer(
        model=model,
        args=arguments(
            tmp_path,
            eval_strategy="steps",
            eval_steps=2,
            eval_on_start=True,
            per_device_eval_batch_size=BATCH,
        ),
        train_dataset=samples,
        eval_dataset=samples,
        guidance=guidance,
    )
    trainer.train()
    assert forwards.count == 4
    assert target.count == 4 + 3 * 4
    plain = Trainer(model=model, args=trainer.args, eval_dataset=samples).evaluate()
    assert trainer.evaluate()["eval_loss"] == plain["eval_loss"]
    assert forwards.count == 4


def test_a_loss_outside_of_training_is_the_models(tmp_path):
    samples, model = data(1), Tagger()
    guidance = Guidance(model, Guide(), PAIRS)
    trainer = guided_trainer(tmp_path, model, guidance, samples)
    ((batch,),) = windows(samples, 1)
    expected = model.train()(**batch)["loss"]
    assert torch.equal(trainer.compute_loss(model, batch), expected)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert torch.equal(loss, outputs["loss"])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused, tmp_path):
    """Trainer has scalers on GPUs only, so it is given one here."""

    class Overflowing(Tagger):
        calls = 0

        def task(self, logits, labels):
            self.calls += 1
            return super().task(logits, labels) * (math.inf if self.calls == 2 else 1.0)

    model = Overflowing()
    guidance = Guidance(model, Guide(), PAIRS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    trainer = GuidedTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=data(4),
        optimizers=(optimizer, None),
        guidance=guidance,
    )
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train()
    assert scaler.get_scale() == 4.0
    assert trainer.state.global_step == 4
    assert guidance.steps == 3


def test_bf16_is_autocast_for_the_guide_too(tmp_path):
    seen = []

    class Seeing(Guide):
        def forward(self, input_ids):
            logits = super().forward(input_ids)
            seen.append(logits.dtype)
            return logits

    model = Tagger()
    guidance = Guidance(model, Seeing(), PAIRS)
    guided_trainer(tmp_path, model, guidance, data(2), bf16=True).train()
    assert seen == [torch.bfloat16] * 2
    assert guidance.last.isfinite().all()


def bert(width: int, seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=11,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def test_networks_of_transformers(tmp_path):
    """A model of transformers guides another; a part of the model is the target."""
    samples = [sample | {"labels": sample["input_ids"][0] % 3} for sample in data(4)]
    model, guide = bert(16, 0), bert(24, 1)
    guidance = Guidance(model.bert, guide, [("encoder.layer.*", "bert.encoder.layer.*")])
    before = [p.clone() for p in guide.parameters()]
    trainer = GuidedTrainer(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=2, logging_steps=1),
        train_dataset=samples,
        guidance=guidance,
    )
    trainer.train()
    assert guidance.steps == 2
    assert guidance.pairs == [(f"encoder.layer.{i}", f"bert.encoder.layer.{i}") for i in (0, 1)]
    assert all(map(torch.equal, before, guide.parameters()))
    for log in trainer.state.log_history[:2]:
        assert log["loss"] == pytest.approx(log["guidance/loss"] + log["guidance/task_loss"])


def test_gradient_checkpointing_changes_nothing(tmp_path):
    samples = [sample | {"labels": sample["input_ids"][0] % 3} for sample in data(2)]
    states = []
    for checkpointing in (False, True):
        model, guide = bert(16, 0).double(), bert(24, 1).double()
        guidance = Guidance(model, guide, [("bert.encoder.layer.*", "bert.encoder.layer.*")])
        args = arguments(tmp_path, activation_checkpointing=checkpointing)
        GuidedTrainer(model=model, args=args, train_dataset=samples, guidance=guidance).train()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_it_is_a_mixin(tmp_path):
    class GuidedSeq2SeqTrainer(GuidedTrainer, Seq2SeqTrainer):
        pass

    model = Tagger()
    guidance = Guidance(model, Guide(), PAIRS)
    trainer = GuidedSeq2SeqTrainer(
        model=model,
        args=arguments(tmp_path, Seq2SeqTrainingArguments),
        train_dataset=data(2),
        guidance=guidance,
    )
    trainer.train()
    assert guidance.steps == 2


def test_a_compiled_model(tmp_path):
    torch.compiler.reset()
    samples, model, expected = data(3, padded=False), Tagger().double(), Tagger().double()
    guidance = Guidance(model, Guide().double(), PAIRS)
    guided_trainer(
        tmp_path, model, guidance, samples, torch_compile=True, torch_compile_backend="eager"
    ).train()
    plain_loop(expected, Guide().double(), samples)
    assert_same_weights(model, expected)
