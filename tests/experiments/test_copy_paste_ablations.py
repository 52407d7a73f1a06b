"""Ablations of copy-paste: what differs from ``copy-paste`` in each arm, and nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from pyguide.cli import main
from pyguide.data.splits import Splits
from pyguide.experiments import copy_paste, copy_paste_ablations
from pyguide.experiments.harness.jobs import arm_config
from pyguide.files import read_json

SETTING = copy_paste_ablations.EXPERIMENT.scales["default"]
ARMS = {arm.name: arm for arm in SETTING.arms}
# The target's layers and the guide's that are compared, where not all are, each with its own.
PAIRS = {
    "untrained-first-1": [(0, 0)],
    "untrained-first-2": [(0, 0), (1, 1)],
    "untrained-last-1": [(2, 2)],
    "untrained-last-2": [(1, 1), (2, 2)],
    "untrained-one-guide-layer": [(0, 2), (1, 2), (2, 2)],
}


@pytest.mark.parametrize("name", [name for name in ARMS if name != "none"])
def test_what_is_compared_in_an_arm(name):
    arm = ARMS[name]
    config = arm_config(replace(SETTING.config, width=8, guide_width=8), arm)
    data = Splits(None, None, None, classes=10)
    target, guide = SETTING.target(config, data), SETTING.guide(config, data)
    found = SETTING.guidance(target, guide, config, arm).pairs
    expected = PAIRS.get(name, [(0, 0), (1, 1), (2, 2)])
    assert found == [(f"layers.{i}", f"layers.{j}") for i, j in expected]
    distance = next((d for d in ("debiased_cka", "rsa") if d.replace("_", "-") in name), "cka")
    assert config.distance == ("ridge" if name.endswith("ridge") else distance)
    assert name.startswith(arm.guide) and arm.baseline == "none"


def test_an_arm_differs_from_copy_paste_in_one_field():
    shipped = asdict(copy_paste.CopyPasteConfig())
    own = asdict(SETTING.config)
    differing = {name for name in shipped if shipped[name] != own[name]}
    assert differing == {"arms", "seeds", "lr"} and set(own["lr"].values()) == {1e-3}
    assert all(len(arm.changes) <= 1 for arm in ARMS.values())


def test_one_guide_layer_is_compared_whatever_the_rule_of_the_others(
    jobs_in_threads, tmp_path, capsys
):
    options = ["--arms", "none", "untrained-one-guide-layer", "--pairs", "paper", "--seeds", "1"]
    options += ["--min-length", "2", "--max-length", "4", "--train-size", "32", "--epochs", "1"]
    options += ["--held-out-size", "8", "--batch-size", "16", "--guide-batch-size", "16"]
    options += ["--width", "8", "--guide-width", "8", "--workers", "1"]
    out = tmp_path / "run"
    assert main(["train", "copy-paste-ablations", *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert results["failed"] == {} and len(results["runs"]) == 2


def test_pairs_are_not_varied_where_an_arm_sets_them(tmp_path, capsys):
    for arm in ("untrained-one-guide-layer", "untrained-last-1"):
        options = ["--arms", "none", arm, "--vary", "pairs=first:1,last:1"]
        out = tmp_path / "run"
        assert main(["train", "copy-paste-ablations", *options, "--out", str(out)]) == 2
        assert f"--vary: arm {arm} sets pairs itself" in capsys.readouterr().err
        assert not out.exists()


def test_the_papers_scale_has_its_six_subsets_of_layers():
    paper = copy_paste_ablations.EXPERIMENT.scales["paper"]
    new = {arm.name: arm.paper for arm in paper.arms if arm.name not in ARMS}
    assert new == {"untrained-first-3": (33.93, None), "untrained-last-3": (42.33, None)}
    assert set(ARMS) < set(paper.config.arms)
    config = paper.checked(replace(paper.config, width=8, guide_width=8, heads=2))
    assert config.layers == 4 and set(config.lr.values()) == {1e-4}
    (last,) = (arm for arm in paper.arms if arm.name == "untrained-last-3")
    config = arm_config(config, last)
    data = Splits(None, None, None, classes=10)
    networks = paper.target(config, data), paper.guide(config, data)
    pairs = paper.guidance(*networks, config, last).pairs
    assert pairs == [(f"layers.{i}", f"layers.{i}") for i in (1, 2, 3)]
