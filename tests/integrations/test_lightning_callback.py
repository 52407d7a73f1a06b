"""GuidanceCallback: Lightning trains as the same steps in a plain loop do."""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib
import io
import math
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from test_no_wait import RefuseToWait
from torch import nn
from torch.utils.data import DataLoader

from pyguide import Guidance
from pyguide.guidance import GuideCache, schedules
from pyguide.integrations.lightning import GuidanceCallback

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        ".*`isinstance.treespec, LeafSpec.` is deprecated",
        "The number of training batches",
        "You defined a `validation_step` but have no `val_dataloader`",
        "You're resuming from a checkpoint that ended before the epoch ended",
    )
]


class Classifier(pl.LightningModule):
    """Task loss and validation; both networks are in `model`."""

    def __init__(self, width: int = 12, fused: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.model = network(width)
        self.fused = fused

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=self.fused)


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    )


def untrained_guide(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return network(9).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(32, 10, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(4, (32,), generator=generator),
        )
        for _ in range(count)
    ]


def loader(data: list) -> DataLoader:
    return DataLoader(data, batch_size=None)


def trainer(*callbacks: pl.Callback, library=pl, **options) -> pl.Trainer:
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    if "plugins" not in options:
        options = {"precision": "64-true"} | options
    return library.Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet | options)


def plain_loop(module, guide, data, *, epochs=1, accumulate=1, context=None, **options) -> Guidance:
    """What Lightning and the callback do, by hand."""
    guidance = Guidance(module, guide, **options)
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for i, (x, y) in enumerate(data):
            with context or torch.autocast("cpu", enabled=False):
                with guidance.capture():
                    logits = module(x)
                loss = guidance.total_loss(F.cross_entropy(logits, y), x)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(data):
                optimizer.step()
                optimizer.zero_grad()
                guidance.step()
    return guidance


def assert_same_weights(module: nn.Module, expected: nn.Module) -> None:
    state, other = module.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


class Forwards:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, *_) -> None:
        self.count += 1


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"release_at": 3},
        {"weight": schedules.linear(2.0, 0.0, steps=4)},
        {"align_only": 2, "pairs": [("model.0", "2")]},
    ],
    ids=["release", "linear", "align"],
)
def test_weights_are_those_of_a_plain_loop(accumulate, options):
    """Seven batches: the last window of an epoch accumulates one batch only."""
    data, module, expected = batches(7), Classifier(), Classifier().double()
    callback = GuidanceCallback(untrained_guide(), **options)
    trainer(callback, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, loader(data))
    guidance = plain_loop(
        expected, untrained_guide(), data, epochs=2, accumulate=accumulate, **options
    )
    assert_same_weights(module, expected)
    assert callback.guidance.steps == guidance.steps == (14 if accumulate == 1 else 6)
    assert callback.guidance.released == guidance.released == ("release_at" in options)


def test_the_weights_are_not_those_without_guidance():
    data, module, alone = batches(2), Classifier(), Classifier()
    trainer(GuidanceCallback(untrained_guide()), max_epochs=1).fit(module, loader(data))
    trainer(max_epochs=1).fit(alone, loader(data))
    assert not torch.equal(module.model[0].weight, alone.model[0].weight)


def test_a_submodule_is_the_target():
    data, module, expected = batches(2), Classifier(), Classifier().double()
    pairs = [("2", "2")]
    callback = GuidanceCallback(untrained_guide(), pairs, target="model")
    trainer(callback, max_epochs=1).fit(module, loader(data))
    plain_loop(expected, untrained_guide(), data, pairs=[("model.2", "2")])
    assert_same_weights(module, expected)


def test_bf16_mixed_is_autocast():
    data = batches(3, torch.float32)
    module, expected = Classifier(), Classifier()
    callback = GuidanceCallback(untrained_guide(torch.float32))
    trainer(callback, max_epochs=1, precision="bf16-mixed").fit(module, loader(data))
    context = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    plain_loop(expected, untrained_guide(torch.float32), data, context=context)
    assert_same_weights(module, expected)
    assert next(iter(callback.guidance.log_dict().values())).isfinite()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    data = batches(4, torch.float32)
    data[1][0][0, 0] = torch.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    callback = GuidanceCallback(untrained_guide(torch.float32))
    fit = trainer(callback, max_epochs=1, plugins=[precision])
    fit.fit(Classifier(fused=fused), loader(data))
    assert scaler.get_scale() == 4.0
    assert fit.global_step == 4
    assert callback.guidance.steps == 3


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


def logged(folder) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_the_logger_gets_each_pair(tmp_path):
    data, logger = batches(6), CSVLogger(tmp_path, name="", version="")
    callback = GuidanceCallback(untrained_guide(), weight=0.5, release_at=4)
    fit = trainer(callback, max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(Classifier(), loader(data))
    rows = logged(tmp_path)
    assert [row["guidance/step"] for row in rows[:4]] == [0, 1, 2, 3]
    assert all(math.isnan(v) for row in rows[4:] for k, v in row.items() if "guidance" in k)
    pairs = {"guidance/cka/model.0~0", "guidance/cka/model.2~2"}
    expected = Classifier().double()
    guidance = plain_loop(expected, untrained_guide(), data[:4], weight=0.5)
    for name, value in guidance.log_dict().items():
        # The table has float32.
        assert rows[3][name] == pytest.approx(float(value), rel=1e-6)
    assert pairs <= set(rows[3])
    assert rows[3]["guidance/loss"] == pytest.approx(0.5 * sum(rows[3][p] for p in pairs))


def test_what_a_step_does_not_have_is_nan_in_its_epoch(tmp_path):
    """Lightning would repeat the last distances while the weight is 0, and after release."""
    logger = CSVLogger(tmp_path, name="", version="")
    weight = schedules.linear(1.0, 0.0, steps=2)
    callback = GuidanceCallback(untrained_guide(), [("model.0", "0")], weight=weight)
    fit = trainer(callback, max_epochs=2, logger=logger, log_every_n_steps=1)
    fit.fit(Classifier(), loader(batches(3)))
    rows = logged(tmp_path)
    distances = [row.get("guidance/cka/model.0~0") for row in rows]
    assert [value is None or math.isnan(value) for value in distances] == [False] * 2 + [True] * 4
    assert math.isnan(distances[2])
    assert distances[3:] == [None] * 3
    assert [row["guidance/weight"] for row in rows] == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_an_epoch_after_release_logs_nothing(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    callback = GuidanceCallback(untrained_guide(), release_at=3)
    fit = trainer(callback, max_epochs=2, logger=logger, log_every_n_steps=1)
    fit.fit(Classifier(), loader(batches(3)))
    names = [{name for name in row if "guidance" in name} for row in logged(tmp_path)]
    assert all(names)
    assert len(names) == 3


def test_two_guides_add_up_and_log_apart(tmp_path):
    data, module, expected = batches(3), Classifier(), Classifier().double()
    logger = CSVLogger(tmp_path, name="", version="")
    first, second = untrained_guide(), network(7).double()
    callbacks = [
        GuidanceCallback(first, [("model.0", "0")]),
        GuidanceCallback(second, [("model.2", "2")], name="second", release_at=2),
    ]
    fit = trainer(*callbacks, max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader(data))

    one = Guidance(expected, first, [("model.0", "0")])
    two = Guidance(expected, second, [("model.2", "2")], release_at=2)
    optimizer = expected.configure_optimizers()
    for x, y in data:
        with two.capture(), one.capture():
            logits = expected(x)
        (F.cross_entropy(logits, y) + one.loss(x) + two.loss(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
        one.step()
        two.step()
    assert_same_weights(module, expected)
    assert "training_step" not in vars(module)
    names = {name for row in logged(tmp_path) for name in row}
    assert {"guidance/cka/model.0~0", "second/cka/model.2~2"} <= names


def test_without_logs_nothing_is_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    callback = GuidanceCallback(untrained_guide(), log=False)
    fit = trainer(callback, max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(Classifier(), loader(batches(2)))
    assert not (tmp_path / "metrics.csv").exists()


class LoggingWithoutWaiting(Classifier):
    """What is logged is on the device, and logging it again does not read it."""

    logged = 0

    def log_dict(self, values, **options):
        assert all(value.device == self.device for value in values.values())
        with RefuseToWait() if self.logged else contextlib.nullcontext():
            super().log_dict(values, **options)
        self.logged += 1


def test_logging_does_not_wait_for_the_device(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    callback = GuidanceCallback(untrained_guide(), release_at=3)
    fit = trainer(callback, max_epochs=1, logger=logger, log_every_n_steps=2)
    fit.fit(module := LoggingWithoutWaiting(), loader(batches(4)))
    assert module.logged == 4
    assert logged(tmp_path)[0]["guidance/step"] == 1


class Wrapping(pl.Callback):
    """Puts a training_step of its own around that of the module."""

    def on_train_start(self, trainer, pl_module):
        step = pl_module.training_step
        pl_module.training_step = lambda *args: step(*args)


def test_a_step_that_another_callback_wrapped_is_unguided_after_the_fit():
    forwards, module = Forwards(guide := untrained_guide()), Classifier()
    fit = trainer(GuidanceCallback(guide), Wrapping(), max_epochs=1)
    fit.fit(module, loader(batches(2)))
    fit.fit_loop.max_epochs = 2
    fit.fit(module, loader(batches(2)))
    assert forwards.count == 4
    trainer(max_epochs=1).fit(module, loader(batches(2)))
    assert forwards.count == 4


def test_only_training_runs_the_guide():
    """validation_step calls training_step here; so does the sanity check."""
    module, data = Classifier(), loader(batches(4))
    forwards = Forwards(guide := untrained_guide())
    target = Forwards(module.model)
    fit = trainer(GuidanceCallback(guide), max_epochs=1, val_check_interval=2)
    fit.fit(module, data, data)
    assert forwards.count == 4
    assert target.count == 4 + 2 * 4 + 2
    fit.validate(module, data, verbose=False)
    assert forwards.count == 4


def test_the_module_is_as_before_after_a_fit_and_after_an_exception():
    class Failing(Classifier):
        def on_train_batch_end(self, *args):
            assert "training_step" in vars(self)
            if self.global_step == 2:
                raise KeyError("on purpose")

    module = Failing()
    callback = GuidanceCallback(untrained_guide())
    with pytest.raises(KeyError, match="on purpose"):
        trainer(callback, max_epochs=1).fit(module, loader(batches(4)))
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())
    assert callback.state_dict()["step"] == 2
    assert callback.guidance.log_dict()


def test_a_copy_of_the_module_in_training_has_its_own_step():
    class Copying(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            file = io.BytesIO()
            torch.save(pl_module.model, file)
            self.copy = copy.deepcopy(pl_module)

    copying, forwards = Copying(), Forwards(guide := untrained_guide())
    module = Classifier()
    trainer(GuidanceCallback(guide), copying, max_epochs=1).fit(module, loader(batches(2)))
    loss = copying.copy.training_step(batches(1)[0], 0)
    assert copying.copy.training_step.__self__ is copying.copy
    torch.testing.assert_close(loss, module.training_step(batches(1)[0], 0))
    assert forwards.count == 2


class DictBatches(Classifier):
    """Batches, and what training_step returns, are dicts."""

    def training_step(self, batch):
        if batch["y"] is None:
            return None
        return {"loss": F.cross_entropy(self(batch["x"]), batch["y"]), "size": len(batch["x"])}


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


class WithLBFGS(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


def test_a_step_that_calls_training_step_several_times_counts_once():
    forwards = Forwards(guide := untrained_guide())
    callback = GuidanceCallback(guide)
    trainer(callback, max_epochs=1).fit(WithLBFGS(), loader(batches(2)))
    assert callback.guidance.steps == 2
    assert forwards.count > 2


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


def test_a_compiled_module():
    torch.compiler.reset()
    data, module, expected = batches(3), Classifier(), Classifier().double()
    callback = GuidanceCallback(untrained_guide())
    compiled = torch.compile(module, backend="eager")
    trainer(callback, max_epochs=1).fit(compiled, loader(data), loader(data))
    plain_loop(expected, untrained_guide(), data)
    assert_same_weights(module, expected)


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


def test_a_state_that_does_not_fit_leaves_no_hooks(tmp_path):
    data, module = loader(batches(1)), Classifier()
    first = trainer(GuidanceCallback(untrained_guide(), "last:1"), max_epochs=1)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    second = trainer(GuidanceCallback(untrained_guide(), "last:2"), max_epochs=2)
    with pytest.raises(ValueError, match="the state is of pairs='last:1'"):
        second.fit(module, data, ckpt_path=tmp_path / "first.ckpt")
    assert not any(m._forward_hooks for m in module.modules())


def test_without_lightning_the_error_says_what_to_install(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pyguide.integrations.lightning")
    with pytest.raises(ImportError, match="GuidanceCallback needs Lightning: pip install light"):
        importlib.import_module("pyguide.integrations.lightning")


FIT = """
import torch
from torch import nn
import pytorch_lightning as pl
from pyguide.integrations.lightning import GuidanceCallback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
callback = GuidanceCallback(guide, release_at=2)
options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **options)
data = [(torch.randn(64, 8), torch.randint(3, (64,))) for _ in range(3)]
trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=None))
trainer.save_checkpoint({path!r})
saved = torch.load({path!r}, weights_only=True)["callbacks"][callback.state_key]
print(GuidanceCallback.__base__.__module__, saved["step"], saved["released"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("missing", [[], ["lightning"]])
def test_a_pytorch_lightning_trainer(missing, tmp_path):
    """Also with the callback of the other package, where both are installed."""
    hide = f"import sys; sys.modules |= dict.fromkeys({missing})\n"
    code = hide + FIT.format(path=str(tmp_path / "x.ckpt"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    package = "pytorch_lightning" if missing else "lightning.pytorch"
    assert done.stdout.splitlines()[-1] == f"{package}.callbacks.callback 3 True", done.stderr
