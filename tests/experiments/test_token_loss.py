"""The loss and metrics of labels at positions: every label counts the same, padding not at all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.splits import TensorSplit
from pyguide.data.tokens import IGNORED
from pyguide.experiments import copy_paste, language_model
from pyguide.experiments.harness.objectives import Losses
from pyguide.experiments.harness.statistics import summarize

COPYING = copy_paste.EXPERIMENT.scales["default"]
LANGUAGE = language_model.EXPERIMENT.scales["default"]


class Table(nn.Module):
    """Logits that depend on the token alone."""

    def __init__(self, tokens, outputs):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(tokens, outputs))

    def forward(self, x):
        return self.logits[x]


def by_hand(model, x, y):
    """Losses and hits of all labels, one after another."""
    losses, right = [], []
    log_p = model(x).detach().log_softmax(dim=2)
    for i in range(len(x)):
        for t in range(x.size(1)):
            label = y[i, t].item()
            if label != IGNORED:
                losses.append(-log_p[i, t, label].item())
                right.append(log_p[i, t].argmax().item() == label)
    return losses, right


@pytest.fixture
def copies():
    return CopyPaste(1, 6).sample(10, torch.Generator().manual_seed(0))


def test_every_label_of_a_batch_counts_once(copies):
    x, y = copies
    model = Table(13, 10)
    loss = COPYING.task_loss(model(x), y)
    losses, right = by_hand(model, x, y)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    # Not the mean over sequences, which have one label to six.
    counts = (y != IGNORED).sum(dim=1)
    assert len(counts.unique()) > 1
    means = [COPYING.task_loss(model(x[i : i + 1]), y[i : i + 1]).item() for i in range(10)]
    assert abs(sum(means) / 10 - loss.item()) > 1e-3
    (gradient,) = torch.autograd.grad(loss, model.logits)
    assert gradient[[COPYING.padding, 10]].abs().max() == 0 and gradient[11].abs().max() > 1e-3
    metrics = COPYING.train_metrics(Losses(model(x), loss, {"task": loss}), y)
    assert metrics["accuracy"].item() == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("batch", [3, 4, 10])
def test_an_evaluation_does_not_depend_on_its_batches(copies, batch):
    x, y = copies
    model = Table(13, 10)
    losses, right = by_hand(model, x, y)
    found = COPYING.evaluate(model, TensorSplit(x, y, batch))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["accuracy"] == sum(right) / len(right)
    assert found["right"].tolist() == right


def test_guesses_of_copies_have_the_loss_and_the_accuracy_of_chance():
    x, y = CopyPaste(8, 12).sample(2000, torch.Generator().manual_seed(0))
    model = Table(13, 10)
    nn.init.zeros_(model.logits)
    found = COPYING.evaluate(model, TensorSplit(x, y))
    labels = (y != IGNORED).sum().item()
    assert found["loss"] == pytest.approx(math.log(10), rel=1e-6)
    assert COPYING.chance == 0.1
    assert found["accuracy"] == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / labels))


def test_perplexity_is_that_of_the_mean_loss_of_all_words():
    x, y = torch.randint(20, (2, 10, 6))
    model = Table(20, 20)
    losses, _ = by_hand(model, x, y)
    found = LANGUAGE.evaluate(model, TensorSplit(x, y, 4))
    mean = sum(losses) / len(losses)
    assert set(found) == {"loss", "perplexity"}
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    parts = [
        LANGUAGE.evaluate(model, TensorSplit(x[i], y[i])) for i in (slice(4), slice(4, 8), [8, 9])
    ]
    assert abs(sum(p["perplexity"] for p in parts) / 3 / found["perplexity"] - 1) > 1e-3
    loss = LANGUAGE.task_loss(model(x), y)
    metrics = LANGUAGE.train_metrics(Losses(model(x), loss, {"task": loss}), y)
    assert metrics.keys() == {"perplexity"}
    assert metrics["perplexity"].item() == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_perplexity_that_is_too_large_is_infinite():
    model = Table(2, 2)
    with torch.no_grad():
        model.logits.copy_(torch.tensor([[0.0, 1e4], [0.0, 1e4]]))
    x = torch.zeros(3, 4, dtype=torch.int64)
    found = LANGUAGE.evaluate(model, TensorSplit(x, x))
    assert found == {"loss": pytest.approx(1e4), "perplexity": math.inf}


def test_an_evaluation_is_in_evaluation_mode_and_without_gradients():
    class Checked(Table):
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            return super().forward(x)

    x, y = torch.randint(20, (2, 10, 6))
    LANGUAGE.evaluate(Checked(20, 20).train(), TensorSplit(x, y))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(-5.0, "reproduced"), (5.0, "not reproduced"), (0.0, "within noise")],
)
@pytest.mark.parametrize("scale", ["default", "paper", "paper-large"])
def test_a_lower_perplexity_is_what_the_paper_has(scale, difference, verdict):
    setting = language_model.EXPERIMENT.scales[scale]
    runs, records = [], {}
    for arm in setting.arms:
        for seed, noise in [(1, -0.5), (2, 0.0), (3, 0.5)]:
            # The noise differs between arms, or there would be no error.
            value = 60.0 + (noise if arm.name == "none" else difference)
            run = {"key": f"{arm.name}{seed}", "arm": arm.name, "seed": seed}
            scores = {f"{split}_perplexity": value for split in ("train", "val", "test")}
            runs.append(run | scores)
            records[run["key"]] = [
                {"epoch": 1, "val_loss": 4.0, "task_loss": 4.0, "test_loss": 4.0, **scores}
            ]
    summary = summarize(setting.arms, runs, records.__getitem__, setting.metric)
    for arm in ("trained", "untrained"):
        assert summary[arm]["difference"]["mean"] == pytest.approx(difference)
        assert summary[arm]["verdict"] == verdict
