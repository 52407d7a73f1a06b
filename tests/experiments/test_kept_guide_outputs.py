"""The guide's layers on the training data, kept in memory by the sequence experiments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyguide.experiments import copy_paste
from pyguide.experiments.harness.jobs import Files, TargetJob

SETTING = copy_paste.EXPERIMENT.scales["default"]
CONFIG = replace(
    SETTING.config,
    min_length=2,
    max_length=4,
    train_size=80,
    held_out_size=20,
    epochs=3,
    batch_size=32,
    width=8,
    guide_width=8,
    heads=2,
)


@pytest.fixture
def run(tmp_path, new_report, monkeypatch, one_thread):
    """Train the target with an untrained guide; return the records and the guide's batches."""

    def run(**changes):
        seen = []
        new_guide = SETTING.guide

        def watched(config, data):
            guide = new_guide(config, data)
            guide.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
            return guide

        monkeypatch.setattr(SETTING, "guide", watched)
        files = Files(tmp_path, tmp_path / "checkpoint", 1e9, tmp_path / "guide")
        arm = SETTING.arms[2]
        config = replace(CONFIG, **changes)
        report = new_report()
        TargetJob(SETTING, config, arm, 1, 1e-3, False, files).run(report)
        monkeypatch.undo()
        return report.records, seen

    return run


def test_the_guide_runs_once_over_the_data_and_the_losses_stay(run):
    kept, once = run()
    computed, always = run(guide_outputs="computed")
    assert once == [80] and always == [32] * 2 * CONFIG.epochs
    for a, b in zip(kept, computed, strict=True):
        for name in ("task_loss", "guidance_loss", "guidance_grad_norm", "val_loss", "test_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_the_papers_rules_compute_the_guide_in_every_step(run):
    _, seen = run(pairs="paper")
    # The rules look at the guide's layers in the first step, in which it runs twice.
    assert len(seen) >= 2 * CONFIG.epochs and set(seen) == {32}
