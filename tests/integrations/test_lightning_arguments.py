"""GuidanceCallback: what it is given, what of a batch it takes, and what it refuses."""

from __future__ import annotations

import importlib
import sys

import lightning.pytorch as pl
import pytest
import torch
from compared_trainings import Forwards, assert_same_weights
from guided_classifier import (
    IGNORED_WARNINGS,
    Classifier,
    DictBatches,
    batches,
    loader,
    plain_loop,
    trainer,
    untrained_guide,
)
from torch import nn

from pyguide.guidance import GuideCache
from pyguide.integrations.lightning import GuidanceCallback

pytestmark = IGNORED_WARNINGS


def test_a_submodule_is_the_target():
    data, module, expected = batches(2), Classifier(), Classifier().double()
    pairs = [("2", "2")]
    callback = GuidanceCallback(untrained_guide(), pairs, target="model")
    trainer(callback, max_epochs=1).fit(module, loader(data))
    plain_loop(expected, untrained_guide(), data, pairs=[("model.2", "2")])
    assert_same_weights(module, expected)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_dicts_and_skipped_batches():
    data, expected = batches(2), Classifier().double()
    module, outputs = DictBatches(), []

    class Outputs(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, output, *args):
            outputs.append(output)

    callback = GuidanceCallback(untrained_guide(), inputs=lambda batch: batch["x"])
    skipped = {"x": data[0][0], "y": None}
    dicts = [{"x": x, "y": y} for x, y in data] + [skipped]
    trainer(callback, Outputs(), max_epochs=1).fit(module, loader(dicts))
    plain_loop(expected, untrained_guide(), data)
    assert_same_weights(module, expected)
    assert [output.get("size") for output in outputs] == [32, 32, None]
    guidance, task = (callback.guidance.log_dict()[f"guidance/{n}"] for n in ("loss", "task_loss"))
    torch.testing.assert_close(outputs[1]["loss"], guidance + task)


class Tagger(pl.LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        torch.manual_seed(3)
        self.rnn = nn.LSTM(5, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])

    def training_step(self, batch):
        x, mask = batch
        return self(x)[mask].square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_mask_leaves_padding_out():
    mask = torch.arange(6) < torch.tensor([[2], [6], [4], [6]]).repeat(10, 1)
    x = torch.randn(40, 6, 5, dtype=torch.float64)
    trained = []
    for padding in (0.0, 100.0):
        torch.manual_seed(4)
        guide, module = nn.LSTM(5, 7, batch_first=True), Tagger()
        guide = nn.Sequential(guide).double()
        batch = x.masked_fill(~mask.unsqueeze(2), padding), mask
        pairs = [("rnn", "0")]
        callback = GuidanceCallback(guide, pairs, mask=lambda batch: batch[1])
        trainer(callback, max_epochs=1).fit(module, loader([batch] * 2))
        trained.append(module)
    assert_same_weights(*trained)


def test_the_guide_is_moved_to_the_device_of_the_module():
    guide = nn.Sequential(nn.Linear(10, 9), nn.Linear(9, 4)).to("meta")
    with pytest.raises(NotImplementedError, match="meta"):
        trainer(GuidanceCallback(guide), max_epochs=1).fit(Classifier(), loader(batches(1)))


class WithIds(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


def test_a_guide_cache_gets_the_ids_of_the_batch():
    data = [(x, y, torch.arange(32) + 32 * i) for i, (x, y) in enumerate(batches(3))]
    module, guide = WithIds(), untrained_guide()
    forwards = Forwards(guide)
    callback = GuidanceCallback(
        guide,
        [("model.0", "0")],
        guide_cache=GuideCache(samples=96),
        sample_ids=lambda batch: batch[2],
    )
    trainer(callback, max_epochs=3).fit(module, loader(data))
    assert forwards.count == 3
    expected = Classifier().double()
    plain_loop(
        expected, untrained_guide(), [d[:2] for d in data], epochs=3, pairs=[("model.0", "0")]
    )
    assert_same_weights(module, expected)


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class FromIterator(Classifier):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (Manual, {}, RuntimeError, "needs automatic optimization: .* use pyguide.Guidance"),
        (FromIterator, {}, RuntimeError, "a training_step that takes a batch"),
        (Classifier, {"target": "mode"}, ValueError, "target must be the path .* got 'mode'"),
        (Classifier, {"pairs": [("x", "0")]}, ValueError, "the target has no layer 'x'"),
        (DictBatches, {}, TypeError, r"a batch of type dict .* GuidanceCallback\(inputs=\.\.\.\)"),
    ],
)
def test_what_cannot_be_guided_raises_and_leaves_the_module_alone(module, options, error, message):
    data = batches(2)
    if module is DictBatches:
        data = [{"x": x, "y": y} for x, y in data]
    module = module()
    with pytest.raises(error, match=message):
        trainer(GuidanceCallback(untrained_guide(), **options), max_epochs=1).fit(
            module, loader(data)
        )
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": 3}, "guide must be an nn.Module, got int"),
        ({"target": nn.Linear(2, 2)}, "target must be a path, got Linear"),
        ({"inputs": "x"}, "inputs must be a function of the batch, got 'x'"),
        ({"mask": True}, "mask must be a function of the batch, got True"),
        ({"guidemode": "eval"}, "unexpected keyword argument 'guidemode'"),
    ],
)
def test_bad_arguments_raise_at_once(options, message):
    with pytest.raises(TypeError, match=message):
        GuidanceCallback(**{"guide": untrained_guide()} | options)


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pyguide.integrations.lightning")
    with pytest.raises(ImportError, match="GuidanceCallback needs Lightning: pip install light"):
        importlib.import_module("pyguide.integrations.lightning")
