"""GuidanceCallback: what the logger gets of each step."""

from __future__ import annotations

import contextlib
import csv
import math

import pytest
import torch.nn.functional as F
from compared_trainings import assert_same_weights
from guided_classifier import (
    IGNORED_WARNINGS,
    Classifier,
    batches,
    loader,
    network,
    plain_loop,
    trainer,
    untrained_guide,
)
from lightning.pytorch.loggers import CSVLogger
from test_no_wait import RefuseToWait

from pyguide import Guidance
from pyguide.guidance import schedules
from pyguide.integrations.lightning import GuidanceCallback

pytestmark = IGNORED_WARNINGS


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
