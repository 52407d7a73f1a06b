"""GuidedTrainer: what it is given, what of a batch the guide gets, and what it refuses."""

from __future__ import annotations

import importlib
import itertools
import sys

import pytest
import torch
from compared_trainings import Forwards, assert_same_weights
from guided_tagger import PAIRS, Guide, Tagger, adam, arguments, data, guided_trainer, plain_loop
from torch import nn

from pyguide import Guidance, Pair
from pyguide.guidance import GuideCache
from pyguide.integrations.transformers import GuidedTrainer


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


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pyguide.integrations.transformers")
    with pytest.raises(ImportError, match="GuidedTrainer needs transformers: pip install transf"):
        importlib.import_module("pyguide.integrations.transformers")
