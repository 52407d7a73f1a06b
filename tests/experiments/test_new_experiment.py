"""An experiment is one declaration: a sequence task judged by perplexity, with its own arms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pyguide.data.splits import Splits, TensorSplit
from pyguide.experiments import find_experiments
from pyguide.experiments.harness import command
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Arm, Experiment, Metric, Setting
from pyguide.files import read_json

SYMBOLS = 5


@dataclass(frozen=True)
class NextSymbolConfig(Config):
    hidden: int = option(8, "units of the hidden layer", least=1)


class NextSymbol(Setting[NextSymbolConfig]):
    title = "The next symbol of a cycle"
    data_name = "cycle"
    metric = Metric("perplexity", "perplexity", unit="", scale=1.0, higher_is_better=False)
    arms = (
        Arm("alone", "alone", baseline=None),
        Arm("guided", "guided, debiased", "untrained", {"distance": "debiased_cka"}, {}, "alone"),
        Arm("few", "small batches", changes={"batch_size": 16}, baseline="alone"),
    )
    config = NextSymbolConfig(
        arms=("alone", "guided", "few"),
        seeds=(1,),
        lr={"alone": 1e-2, "guided": 1e-2, "few": 1e-2},
        epochs=2,
        batch_size=64,
    )

    def data(self, config, cache):
        x = torch.arange(400).unsqueeze(1) % SYMBOLS + torch.arange(6)
        x = x % SYMBOLS
        whole = TensorSplit(x[:, :-1], x[:, 1:])
        return Splits(whole, whole, whole, classes=SYMBOLS)

    def target(self, config, data):
        return nn.Sequential(
            nn.Embedding(SYMBOLS, config.hidden),
            nn.Linear(config.hidden, config.hidden),
            nn.Linear(config.hidden, SYMBOLS),
        )

    guide = target

    def task_loss(self, output, y):
        return nn.functional.cross_entropy(output.flatten(0, 1), y.flatten())

    def train_metrics(self, losses, y):
        return {"perplexity": losses.parts["task"].detach().exp()}

    @torch.no_grad()
    def evaluate(self, model, split):
        model.eval()
        losses = [self.task_loss(model(x), y).item() for x, y in split.batches()]
        loss = sum(losses) / len(losses)
        return {"loss": loss, "perplexity": math.exp(loss)}


EXPERIMENT = Experiment("next-symbol", "a cycle", "Learn a cycle.", {"default": NextSymbol()})


@pytest.fixture
def run(jobs_in_threads):
    def run(*argv):
        from pyguide.cli import Parser

        parser = Parser()
        command.add_experiment_parser(parser.add_subparsers(), EXPERIMENT)
        args = parser.parse_args(["next-symbol", *map(str, argv)])
        return args.func(args)

    return run


def test_it_has_the_grid_the_report_and_its_own_options(run, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("--hidden", 6, "--seeds", 1, 2, "--workers", 1, "--out", out) == 0
    results = read_json(out / "results.json")
    assert len(results["runs"]) == 6
    for arm in ("guided", "few"):
        assert results["summary"][arm]["difference"]["n"] == 2
    table = (out / "table.md").read_text()
    assert "cycle, test perplexity, lower is better" in table
    assert "guided, debiased" in table and "small batches" in table and "paper" not in table
    # 400 samples: 6 batches of 64 or 25 of 16, so "few" has learnt more in two epochs.
    assert results["summary"]["few"]["difference"]["mean"] < 0
    assert run("--resume", out) == 0 and "0 jobs" in capsys.readouterr().err


def test_the_package_finds_its_own_experiments():
    assert "deep-fcn" in find_experiments()
    for name, experiment in find_experiments().items():
        assert experiment.name == name
        for setting in experiment.scales.values():
            arms = {arm.name: arm for arm in setting.arms}
            assert set(setting.config.arms) <= set(arms)
            assert set(setting.config.lr) == set(arms)
            for arm in arms.values():
                assert arm.guide in ("none", "trained", "untrained")
                assert arm.baseline is None or arm.baseline in arms
