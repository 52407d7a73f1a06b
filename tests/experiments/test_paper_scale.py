"""``--scale paper``: the networks and training, and runs at reduced size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pyguide.cli import main
from pyguide.data.splits import Splits
from pyguide.experiments import fcn_init, plain_cnn, wide_fcn
from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.networks import (
    DeepFCN,
    ResNet,
    WideFCN,
    deep_convnet,
    resnet18,
    resnet50,
)
from pyguide.files import read_json

SETTING = EXPERIMENT.scales["paper"]


def test_the_configuration_is_the_papers():
    config = SETTING.config
    assert (config.batch_size, config.epochs, config.weight) == (256, 100, 1.0)
    assert config.lr == {"none": 1e-4, "trained": 5e-5, "untrained": 5e-5}
    assert len(config.seeds) == 5 and SETTING.top_k == 5
    data = Splits(None, None, None, classes=1000)
    with torch.device("meta"):
        networks = [(SETTING.target(config, data), DeepFCN.paper())]
        networks += [(SETTING.guide(config, data), resnet18())]
    for own, papers in networks:
        shapes = [[p.shape for p in model.parameters()] for model in (own, papers)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("module", "rate", "target", "guide"),
    [
        (wide_fcn, 1e-4, WideFCN, resnet18),
        (fcn_init, 1e-4, WideFCN, resnet18),
        (plain_cnn, 1e-3, deep_convnet, resnet50),
    ],
)
def test_the_other_networks_are_the_papers(module, rate, target, guide):
    setting = module.EXPERIMENT.scales["paper"]
    config = setting.config
    assert (config.batch_size, config.epochs, config.weight) == (256, 100, 1.0)
    assert set(config.lr.values()) == {rate} and len(config.seeds) == 5
    data = Splits(None, None, None, classes=1000)
    with torch.device("meta"):
        networks = [
            (setting.target(config, data), target()),
            (setting.guide(config, data), guide()),
        ]
    for own, papers in networks:
        assert [p.shape for p in own.parameters()] == [p.shape for p in papers.parameters()]


def test_the_learning_rate_falls_to_a_tenth_every_30_epochs():
    model = torch.nn.Linear(1, 1)
    config = replace(SETTING.config, epochs=100)
    optimizer, schedule = SETTING.target_optimizer(model, config, 1e-4, steps=2)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(2):
            optimizer.step()
            schedule.step()
    assert rates == pytest.approx([1e-4] * 30 + [1e-5] * 30 + [1e-6] * 30 + [1e-7] * 10)


def test_top_5_accuracy():
    class Logits(torch.nn.Module):
        def forward(self, x):
            return x

    class OneBatch:
        def batches(self):
            # Class 0 is ranked 1st, 5th, 6th and 7th of seven.
            rows = [[6 - rank] + [i + 0.5 for i in range(6)] for rank in (0, 4, 5, 6)]
            yield torch.tensor(rows), torch.zeros(4, dtype=torch.long)

    assert SETTING.evaluate(Logits(), OneBatch())["top5_accuracy"] == 0.5


def make_images(root, classes=6, train=4, test=2):
    rng = np.random.default_rng(0)
    for split, n in [("train", train), ("val", test)]:
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                array = rng.integers(256, size=(40, 36, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.jpeg")


@pytest.mark.slow
def test_a_run_at_reduced_size(tmp_path, capsys):
    """The paper's code on six classes of few small images: one step an epoch."""
    make_images(tmp_path / "images")
    out = tmp_path / "run"
    small = ["--image-size", "32", "--depth", "4", "--first-width", "16", "--width", "8"]
    short = ["--batch-size", "12", "--guide-batch-size", "12", "--epochs", "2"]
    command = ["train", "deep-fcn", "--scale", "paper", "--data", str(tmp_path / "images")]
    command += [*small, *short, "--guide-epochs", "1", "--seeds", "1", "--loaders", "2"]
    assert main([*command, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert results["scale"] == "paper" and results["failed"] == {}
    assert {run["arm"] for run in results["runs"]} == {"none", "trained", "untrained"}
    for run in results["runs"]:
        assert 0 <= run["test_top5_accuracy"] <= 1
    table = (out / "table.md").read_text()
    assert "test top-5 accuracy (%)" in table and "13.10 ± 0.72" in table

    # The guide's weights, as those of a ResNet-18 from elsewhere, give the same run.
    weights = ["--guide-weights", str(out / "guides" / "guide-seed1.pt"), "--arms", "trained"]
    other = tmp_path / "other"
    assert main([*command, *weights, "--out", str(other)]) == 0
    (again,) = read_json(other / "results.json")["runs"]
    (first,) = (run for run in results["runs"] if run["arm"] == "trained")
    assert again["test_loss"] == first["test_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options"),
    [
        (wide_fcn, ["--width", "16"]),
        (fcn_init, ["--width", "16", "--align-steps", "2"]),
        (plain_cnn, []),
    ],
    ids=["wide-fcn", "fcn-init", "plain-cnn"],
)
def test_the_others_at_reduced_size(
    module, options, tmp_path, monkeypatch, jobs_in_threads, capsys
):
    """One step an epoch; ResNet-50 and its plain twin with one narrow block a stage."""

    def small(stages, **changes):
        def make(**given):
            shared = {"bottleneck": True, "width": 4, "classes": given["classes"]}
            return ResNet(stages, **shared, **changes)

        return make

    if module is plain_cnn:
        monkeypatch.setattr(module, "resnet50", small([1, 1, 1, 1]))
        monkeypatch.setattr(module, "deep_convnet", small([1, 1, 1, 1], skips=False))
    make_images(tmp_path / "images")
    out = tmp_path / "run"
    name = module.EXPERIMENT.name
    command = ["train", name, "--scale", "paper", "--data", str(tmp_path / "images")]
    command += ["--image-size", "32", "--batch-size", "12", "--guide-batch-size", "12"]
    command += ["--epochs", "2", "--guide-epochs", "1", "--seeds", "1", "--loaders", "0"]
    assert main([*command, *options, "--workers", "1", "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert len(results["runs"]) == 3 and results["failed"] == {}
    assert "test top-5 accuracy (%)" in (out / "table.md").read_text()
