"""GuidedTrainer: transformers.Trainer trains as the same steps in a plain loop do."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pyguide import Guidance, Pair
from pyguide.guidance import GuideCache, schedules
from pyguide.integrations.transformers import GuidedTrainer

PAIRS = [("layers.0", "layers.0"), ("layers.2", "layers.2")]
LENGTH, BATCH = 6, 32


class Tagger(nn.Module):
    """Labels every token; its loss is the mean over a batch's tokens."""

    def __init__(self, width: int = 12, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.layers(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.task(logits, labels), "logits": logits}

    def task(self, logits, labels, num_items_in_batch=None):
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return losses / (
            labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        )


class TaggerByItems(Tagger):
    """The losses of an optimizer step add up to the mean over its tokens, as in transformers."""

    def forward(self, input_ids, labels=None, attention_mask=None, **kwargs):
        logits = self.head(self.layers(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.task(logits, labels, **kwargs), "logits": logits}


class Guide(nn.Module):
    """Another architecture, which takes token ids only."""

    def __init__(self, width: int = 9):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Embedding(11, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 4)
        )

    def forward(self, input_ids):
        return self.layers(input_ids)


def data(batches: int, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    samples = []
    for _ in range(batches * BATCH):
        length = int(torch.randint(2, LENGTH + 1, (), generator=generator)) if padded else LENGTH
        ids = torch.randint(1, 11, (LENGTH,), generator=generator)
        valid = torch.arange(LENGTH) < length
        labels = torch.where(valid, ids % 4, -100)
        samples.append({"input_ids": ids * valid, "attention_mask": valid * 1, "labels": labels})
    return samples


def arguments(folder: Path, kind=TrainingArguments, **options):
    fixed = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return kind(str(folder), **fixed | options)


def adam(model: nn.Module) -> tuple:
    return torch.optim.AdamW(model.parameters(), lr=0.01), None


def guided_trainer(folder, model, guidance, samples, *, guided=None, **options) -> GuidedTrainer:
    return GuidedTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=samples,
        optimizers=adam(model),
        guidance=guidance,
        **guided or {},
    )


def windows(samples, accumulate: int) -> list[list[dict[str, torch.Tensor]]]:
    """The batches of each optimizer step of an epoch."""
    batches = [
        {key: torch.stack([sample[key] for sample in samples[i : i + BATCH]]) for key in samples[0]}
        for i in range(0, len(samples), BATCH)
    ]
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


def plain_loop(model, guide, samples, *, epochs=1, accumulate=1, **options) -> Guidance:
    """What GuidedTrainer does, by hand, for a model with losses by batch or by items."""
    guidance = Guidance(model, guide, PAIRS, **options)
    optimizer, _ = adam(model)
    for window in windows(samples, accumulate) * epochs:
        items = sum(batch["labels"].ne(-100).sum() for batch in window)
        for batch in window:
            x = {"input_ids": batch["input_ids"]}
            with guidance.capture():
                logits = model(**x)["logits"]
            by_items = isinstance(model, TaggerByItems)
            task = model.task(logits, batch["labels"], items if by_items else None)
            mean = guidance.total_loss(
                task * (len(window) if by_items else 1), x, mask=batch["attention_mask"].bool()
            )
            (mean / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
    return guidance


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    state, other = model.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


class Forwards:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, *_) -> None:
        self.count += 1


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


def test_padding_changes_nothing(tmp_path):
    """With the mask of the batch; mask=None compares padding too."""
    trained = {}
    for mask, filling in itertools.product(["attention_mask", None], [0, 7]):
        samples = [
            sample | {"input_ids": sample["input_ids"] + filling * (1 - sample["attention_mask"])}
            for sample in data(2)
        ]
        model = Tagger().double()
        pairs = [Pair(*pair, per_token=True) for pair in PAIRS]
        guidance = Guidance(model, Guide().double(), pairs)
        guided_trainer(tmp_path, model, guidance, samples, guided={"mask": mask}).train()
        trained[mask, filling] = model.head.weight
    assert torch.equal(trained["attention_mask", 0], trained["attention_mask", 7])
    assert not torch.equal(trained[None, 0], trained[None, 7])


def test_functions_of_the_batch_give_the_input_and_the_mask(tmp_path):
    samples, weights = data(2), []
    given = {
        "inputs": lambda batch: batch["input_ids"],
        "mask": lambda batch: batch["input_ids"] != 0,
    }
    for guided in ({}, given):
        model = Tagger().double()
        guidance = Guidance(model, Guide().double(), PAIRS)
        guided_trainer(tmp_path, model, guidance, samples, guided=guided).train()
        weights.append(model.head.weight)
    assert torch.equal(*weights)


class GuideOfAll(Guide):
    """Takes whatever it is given."""

    def forward(self, **inputs):
        self.names = set(inputs)
        return super().forward(inputs["input_ids"])


def test_a_guide_gets_the_batch_without_labels(tmp_path):
    model, guide = Tagger(), GuideOfAll()
    guided_trainer(tmp_path, model, Guidance(model, guide, PAIRS), data(1)).train()
    assert guide.names == {"input_ids", "attention_mask"}


def test_the_guide_is_moved_to_the_device_of_the_model(tmp_path):
    model = Tagger()
    guidance = Guidance(model, Guide().to("meta"), PAIRS)
    with pytest.raises(NotImplementedError, match="meta"):
        guided_trainer(tmp_path, model, guidance, data(1)).train()


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


def test_model_init_makes_a_new_guidance_for_each_training(tmp_path):
    made = []

    def guidance(model):
        made.append(Guidance(model, Guide(), PAIRS))
        return made[-1]

    trainer = GuidedTrainer(
        model_init=lambda: Tagger(),
        args=arguments(tmp_path),
        train_dataset=data(2),
        guidance=guidance,
    )
    first = made[0]
    trainer.train()
    trainer.train()
    assert trainer.guidance is made[-1] is not first
    assert trainer.guidance.target is trainer.model
    assert trainer.guidance.steps == 2
    assert trainer.guidance.last is not None
    with pytest.raises(RuntimeError, match="is closed"):
        first.capture().__enter__()


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


def test_a_guide_cache_gets_the_ids_of_the_batch(tmp_path):
    samples = data(3, padded=False)
    plain = [{k: v for k, v in s.items() if k != "attention_mask"} for s in samples]
    with_ids = [{**s, "sample": torch.tensor(i)} for i, s in enumerate(plain)]
    model, guide = Tagger().double(), Guide().double()
    forwards = Forwards(guide)
    guidance = Guidance(model, guide, PAIRS, guide_cache=GuideCache(samples=len(samples)))
    trainer = GuidedTrainer(
        model=model,
        args=arguments(tmp_path, num_train_epochs=3, remove_unused_columns=False),
        train_dataset=with_ids,
        eval_dataset=with_ids,
        optimizers=adam(model),
        guidance=guidance,
        sample_ids="sample",
    )
    trainer.train()
    trainer.evaluate()
    assert forwards.count == 3
    expected = Tagger().double()
    plain_loop(expected, Guide().double(), samples, epochs=3)
    assert_same_weights(model, expected)


class Other(nn.Module):
    def forward(self, pixels):
        return pixels


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance": Guide()}, TypeError, "guidance must be a pyguide.Guidance or a function"),
        ({"guidance": 3}, TypeError, "guidance must be .*, got int"),
        ({"inputs": "input_ids"}, TypeError, "inputs must be a function of the batch"),
        ({"mask": 3}, TypeError, "mask must be a name, a function of the batch or None, got 3"),
        ({"model": Tagger()}, ValueError, "the target of guidance must be the trainer's model"),
    ],
)
def test_bad_arguments_raise_at_once(options, error, message, tmp_path):
    model = Tagger()
    given = {"model": model, "guidance": Guidance(model, Guide(), PAIRS)} | options
    with pytest.raises(error, match=message):
        GuidedTrainer(args=arguments(tmp_path), **given)


def test_data_parallel_replicas_cannot_be_guided(tmp_path):
    model, args = Tagger(), arguments(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"nn\.DataParallel: start one process a GPU"):
        GuidedTrainer(model=model, args=args, guidance=Guidance(model, Guide(), PAIRS))


def test_a_guide_that_takes_nothing_of_the_batch(tmp_path):
    model = Tagger()
    guidance = Guidance(model, nn.Sequential(Other(), nn.Linear(2, 2)), [("head", "1")])
    guidance.guide.forward = Other().forward
    with pytest.raises(ValueError, match=r"parameters pixels, and the batch has .*input_ids"):
        guided_trainer(tmp_path, model, guidance, data(1)).train()


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


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pyguide.integrations.transformers")
    with pytest.raises(ImportError, match="GuidedTrainer needs transformers: pip install transf"):
        importlib.import_module("pyguide.integrations.transformers")
