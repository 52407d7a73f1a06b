"""GuidanceCallback: Lightning trains as the same steps in a plain loop do."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from compared_trainings import Forwards, assert_same_weights
from guided_classifier import (
    IGNORED_WARNINGS,
    Classifier,
    batches,
    loader,
    plain_loop,
    trainer,
    untrained_guide,
)
from lightning.pytorch.plugins.precision import MixedPrecision

from pyguide.guidance import schedules
from pyguide.integrations.lightning import GuidanceCallback

pytestmark = IGNORED_WARNINGS


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


class WithLBFGS(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


def test_a_step_that_calls_training_step_several_times_counts_once():
    forwards = Forwards(guide := untrained_guide())
    callback = GuidanceCallback(guide)
    trainer(callback, max_epochs=1).fit(WithLBFGS(), loader(batches(2)))
    assert callback.guidance.steps == 2
    assert forwards.count > 2


def test_a_compiled_module():
    torch.compiler.reset()
    data, module, expected = batches(3), Classifier(), Classifier().double()
    callback = GuidanceCallback(untrained_guide())
    compiled = torch.compile(module, backend="eager")
    trainer(callback, max_epochs=1).fit(compiled, loader(data), loader(data))
    plain_loop(expected, untrained_guide(), data)
    assert_same_weights(module, expected)


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
