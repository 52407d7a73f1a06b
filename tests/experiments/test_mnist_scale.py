"""``--scale mnist``: the networks, and a run at reduced size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyguide import Guidance
from pyguide.cli import main
from pyguide.data import mnist5000
from pyguide.data.splits import Splits
from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.harness import packages
from pyguide.files import read_json

SETTING = EXPERIMENT.scales["mnist"]


def test_the_guide_gives_21_pairs_from_the_first_to_the_last_hidden_layer():
    config = replace(SETTING.config, guide_width=4)
    data = Splits(None, None, None, classes=10)
    target, guide = SETTING.target(config, data), SETTING.guide(config, data)
    guidance = Guidance(target, guide, example=torch.randn(8, 1, 28, 28))
    assert len(guidance.pairs) == 21
    assert guidance.pairs[0] == ("0.0", "conv1") and guidance.pairs[-1] == ("48.0", "avgpool")
    SETTING.check(replace(config, pairs="first:21"))


def test_the_guide_is_a_resnet18_that_takes_grey_images():
    with torch.device("meta"):
        guide = SETTING.guide(SETTING.config, Splits(None, None, None, classes=10))
    assert guide(torch.empty(2, 1, 28, 28, device="meta")).shape == (2, 10)
    # Of ImageNet's 11,689,512: two channels and a 7 x 7 kernel less, 990 classes less.
    expected = 11_689_512 - 64 * (3 * 49 - 9) - 990 * 513
    assert sum(p.numel() for p in guide.parameters()) == expected


@pytest.fixture
def few_images(monkeypatch):
    """Noise with a bright row that tells the class, in place of the package's images."""
    generator = torch.Generator().manual_seed(0)

    def part(n):
        labels = torch.arange(n) % 10
        images = torch.randn(n, 1, 28, 28, generator=generator)
        images[torch.arange(n), 0, 2 * labels] += 4.0
        return images, labels

    parts = {"train": part(200), "val": part(50), "test": part(100)}
    monkeypatch.setattr(mnist5000, "mnist5000", lambda: parts)
    # What is read of the package is replaced, so it need not be there.
    version = packages._version
    monkeypatch.setattr(packages, "_version", lambda n: "0" if n == "mlxtend" else version(n))


def test_a_run_at_reduced_size(few_images, jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--depth", "3", "--width", "16", "--guide-width", "2", "--seeds", "1"]
    short = ["--batch-size", "40", "--guide-batch-size", "40", "--epochs", "6"]
    command = ["train", "deep-fcn", "--scale", "mnist", *small, *short, "--guide-epochs", "1"]
    assert main([*command, "--workers", "1", "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert results["scale"] == "mnist" and results["failed"] == {}
    accuracies = {run["arm"]: run["test_accuracy"] for run in results["runs"]}
    assert set(accuracies) == {"none", "trained", "untrained"}
    assert min(accuracies.values()) > 0.5  # Chance is 0.1.
    table = (out / "table.md").read_text()
    assert "5,000 images of MNIST, test accuracy (%)" in table and "13.10 ± 0.72" in table
    assert main(["train", "deep-fcn", "--resume", str(out)]) == 0
    assert "0 jobs" in capsys.readouterr().err
