"""Parity's accuracies by length: what they are, when they are taken, and their picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pyguide.cli import main
from pyguide.data.parity import PADDING
from pyguide.experiments import parity
from pyguide.experiments.harness.checkpoint import Checkpoint
from pyguide.experiments.harness.experiment import Setting
from pyguide.experiments.harness.jobs import Files, TargetJob
from pyguide.experiments.harness.trainer import Trainer
from pyguide.files import read_json

SETTING = parity.EXPERIMENT.scales["default"]
ARMS = {arm.name: arm for arm in SETTING.arms}
CONFIG = replace(
    SETTING.config,
    min_length=2,
    max_length=6,
    train_size=96,
    held_out_size=40,
    batch_size=32,
    epochs=3,
    width=8,
    feed_forward=8,
    guide_width=4,
)


class FirstBits(nn.Module):
    """The parity of the first four bits, and what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.asked.append(x)
        return nn.functional.one_hot((x[:, :4] == 1).sum(dim=1) % 2, 2).float()


def test_accuracies_equal_a_direct_count():
    model = FirstBits().train()
    found = SETTING.details(model, CONFIG, None)
    # All lengths that were trained on, and every second one up to twice the longest.
    assert found["lengths"] == [2, 3, 4, 5, 6, 8, 10, 12]
    assert len(model.asked) == 8
    for length, accuracy, x in zip(*found.values(), model.asked, strict=True):
        assert x.shape == (200, length) and not (x == PADDING).any()
        right = sum(sum(row) % 2 == sum(row[:4]) % 2 for row in x.tolist())
        assert accuracy == right / 200
    assert found["accuracy"][:3] == [1.0] * 3
    assert all(0.3 < accuracy < 0.7 for accuracy in found["accuracy"][3:])


def test_the_strings_are_the_datas_seeds_and_leave_the_random_stream():
    first, again, other = FirstBits(), FirstBits(), FirstBits()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = SETTING.details(first, CONFIG, None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert SETTING.details(again, CONFIG, None) == expected
    SETTING.details(other, replace(CONFIG, data_seed=1), None)
    assert all(torch.equal(a, b) for a, b in zip(first.asked, again.asked, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.asked, other.asked, strict=True))


def weights(network):
    return parameters_to_vector(network.parameters()).detach().clone()


class Scripted(parity.Small):
    """Validation losses that are given."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def evaluate(self, model, split):
        model.eval()
        return {"loss": next(self.losses), "accuracy": 0.5}


def trainer(losses, asked, epochs):
    def details(network):
        asked.append(weights(network))
        return {"times": len(asked)}

    setting = Scripted(losses)
    torch.manual_seed(0)
    data = setting.data(CONFIG, None)
    model = setting.target(CONFIG, data)
    return Trainer(
        setting,
        model,
        setting.target_optimizer(model, CONFIG, 1e-3, 3),
        data,
        seed=1,
        epochs=epochs,
        batch_size=32,
        details=details,
    )


def test_details_are_those_of_the_epoch_of_lowest_validation_loss(new_report, tmp_path):
    asked: list[Tensor] = []
    seen: list[Tensor] = []
    report = new_report()
    checkpoint = Checkpoint(tmp_path / "job.pt", {}, seconds=0)
    first = trainer([3.0, 2.0, 5.0], asked, epochs=3)
    report.epoch = lambda record: seen.append(weights(first.model))
    result = first.run(report, checkpoint)
    assert result["best_epoch"] == 2 and result["details"] == {"times": 1}
    assert asked[0].equal(seen[1]) and not asked[0].equal(seen[2])
    # Stopped after the second epoch, the third is worse: what was kept is in the checkpoint.
    again = trainer([9.0], asked, epochs=3).run(new_report(), checkpoint)
    assert again["best_epoch"] == 2 and again["details"] == {"times": 2}
    assert asked[1].equal(asked[0])


def target_job(folder, seconds=1e9, sweep=False):
    files = Files(folder, folder / "checkpoint.pt", seconds, folder / "guide.pt")
    return TargetJob(SETTING, CONFIG, ARMS["untrained"], 1, 1e-2, sweep, files)


class Stop(Exception):
    pass


def without_times(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "times")} for r in records]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stopped_run_goes_on_as_if_it_had_not(epoch, new_report, tmp_path, one_thread):
    """With dropout, a guide and details: bit for bit."""
    whole, stopped = new_report(), new_report()
    expected = target_job(tmp_path / "whole").run(whole)

    def stop(record):
        if record["epoch"] > epoch:
            raise Stop

    interrupted = new_report()
    interrupted.epoch = stop
    (tmp_path / "stopped").mkdir()
    with pytest.raises(Stop):
        target_job(tmp_path / "stopped", seconds=0).run(interrupted)
    torch.manual_seed(99)
    found = target_job(tmp_path / "stopped", seconds=0).run(stopped)
    assert without_times([found]) == without_times([expected])
    assert len(expected["details"]["lengths"]) == 8 and expected["best_epoch"] > 1
    assert without_times(stopped.records) == without_times(whole.records)


def test_details_do_not_steer_a_run_and_a_sweep_has_none(
    new_report, tmp_path, monkeypatch, one_thread
):
    report = new_report()
    result = target_job(tmp_path).run(report)
    assert "details" not in target_job(tmp_path, sweep=True).run(new_report())
    monkeypatch.setattr(parity.Small, "details", Setting.details)
    without = new_report()
    assert "details" in result and "details" not in target_job(tmp_path).run(without)
    assert without_times(without.records) == without_times(report.records)


REDUCED = ["--train-size", "64", "--held-out-size", "32", "--batch-size", "32", "--width", "8"]
REDUCED += ["--feed-forward", "8", "--guide-width", "4", "--epochs", "1", "--workers", "1"]


@pytest.mark.parametrize(
    ("options", "longest_trained_on"),
    [
        (["--arms", "none", "untrained", "--seeds", "1", "2"], {5}),
        # Arms of different lengths share the picture.
        (["--arms", "none", "--seeds", "1", "--vary", "max_length=4,7"], {4, 7}),
    ],
)
def test_the_picture_of_a_run(
    options, longest_trained_on, jobs_in_threads, monkeypatch, tmp_path, capsys
):
    figures = []
    draw = SETTING.draw

    def spy(*args):
        figures.append(draw(*args))
        return figures[-1]

    monkeypatch.setattr(SETTING, "draw", spy)
    out = tmp_path / "run"
    command = ["train", "parity", *REDUCED, "--max-length", "5", *options, "--out", str(out)]
    assert main(command) == 0
    results = read_json(out / "results.json")
    assert results["failed"] == {}
    for run in results["runs"]:
        longest = 5 if "max_length" not in run["arm"] else int(run["arm"][-1])
        own = run["details"]["lengths"]
        assert own == [*range(2, longest + 1), *range(longest + 2, 2 * longest + 1, 2)]
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert f"{out}/differences.png, {out}/lengths.png" in capsys.readouterr().out
    axes = figures[0]["lengths"].axes[0]
    drawn = [
        line
        for line in axes.lines
        if len(line.get_xdata()) > 2 and "trained on" not in str(line.get_label())
    ]
    assert len(drawn) == 2
    # Accuracies begin at length 2, and chance goes from 0 to 1 of the width.
    assert {line.get_xdata()[0] for line in axes.lines} - {0, 2} == longest_trained_on
    own = [run["details"] for run in results["runs"] if run["arm"] == results["runs"][0]["arm"]]
    accuracies = [details["accuracy"] for details in own]
    means = [100 * sum(column) / len(own) for column in zip(*accuracies, strict=True)]
    assert list(drawn[0].get_xdata()) == own[0]["lengths"]
    assert list(drawn[0].get_ydata()) == pytest.approx(means)


def test_the_picture_has_how_many_strings_were_trained_on():
    data = SETTING.data(CONFIG, None)
    model = FirstBits()
    details = SETTING.details(model, CONFIG, None)
    runs = [{"arm": "none", "details": details}]
    arms = [ARMS["none"]]
    (axes,) = SETTING.draw(CONFIG, arms, runs)["lengths"].axes
    (line,) = [line for line in axes.lines if "trained on" in str(line.get_label())]
    known = {tuple(t for t in row if t != PADDING) for row in data.train.x.tolist()}
    expected = [100 * sum(tuple(row) in known for row in x.tolist()) / len(x) for x in model.asked]
    assert line.get_xdata().tolist() == details["lengths"]
    assert line.get_ydata().tolist() == pytest.approx(expected)
    assert expected[0] == 100 and 0 < expected[4] < 100 and expected[5:] == [0, 0, 0]
    # Where arms have data of their own there is no one share.
    varied = [replace(arm, changes={"max_length": 5}) for arm in arms]
    (axes,) = SETTING.draw(CONFIG, varied, runs)["lengths"].axes
    assert not [line for line in axes.lines if "trained on" in str(line.get_label())]
