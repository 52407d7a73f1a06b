"""One job: a guide or a target trained, stopped and continued."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.harness import mnist1d
from pyguide.experiments.harness.jobs import Files, GuideJob, TargetJob
from pyguide.torch_files import load_tensors

SETTING = EXPERIMENT.scales["default"]
ARMS = {arm.name: arm for arm in SETTING.arms}
CONFIG = replace(
    SETTING.config,
    depth=6,
    width=32,
    epochs=2,
    batch_size=128,
    guide_epochs=1,
    guide_batch_size=128,
)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path, tmp_path / "checkpoint.pt", 1e9, tmp_path / "guide.pt")


@pytest.fixture
def target_job(files):
    def make(arm="none", seed=3, lr=1e-3, sweep=False, checkpoint_seconds=1e9, **changes):
        own = replace(files, checkpoint_seconds=checkpoint_seconds)
        config = replace(CONFIG, **changes)
        return TargetJob(SETTING, config, ARMS[arm], seed, lr, sweep, own)

    return make


@pytest.fixture
def guide_job(files):
    return GuideJob(SETTING, CONFIG, seed=3, score_test=True, files=files)


@pytest.fixture
def run_job(new_report):
    def run(job):
        """The result and the records of a job, without their times."""
        report = new_report()
        result = job.run(report)
        for record in [result, *report.records]:
            assert record.pop("seconds", 0) >= 0
            assert min(record.pop("times", {"step": 1.0}).values()) > 0
        return result, report.records

    return run


@pytest.fixture(autouse=True)
def small(tiny_data, one_thread):
    pass


@pytest.mark.slow
def test_the_shipped_guide_reaches_95_percent(files, new_report, monkeypatch):
    monkeypatch.undo()  # MNIST-1D itself.
    assert "tiny" not in mnist1d.mnist1d.__qualname__
    report = new_report()
    result = GuideJob(SETTING, SETTING.config, 1, True, files).run(report)
    assert result["test_accuracy"] >= 0.95
    assert len(report.records) == SETTING.config.guide_epochs


@pytest.mark.parametrize("arm", ARMS)
def test_a_job_depends_on_its_fields_alone(arm, target_job, guide_job, files, run_job):
    first_guide = run_job(guide_job)
    state = load_tensors(files.guide)
    job = target_job(arm)
    torch.manual_seed(0)
    first = run_job(job)
    torch.manual_seed(123)
    assert run_job(job) == first
    assert run_job(replace(job, seed=4)) != first
    assert run_job(guide_job) == first_guide
    again = load_tensors(files.guide)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_arms_of_a_seed_start_from_the_same_target_and_batch(target_job, guide_job, run_job):
    run_job(guide_job)
    runs = {arm: run_job(target_job(arm))[1] for arm in ARMS}
    # The norm in the first batch is taken before the arms have parted.
    assert len({run[0]["task_grad_norm"] for run in runs.values()}) == 1
    assert len({run[-1]["val_loss"] for run in runs.values()}) == 3
    assert "guidance_loss" not in runs["none"][0]
    assert runs["trained"][0]["guidance_loss"] != runs["untrained"][0]["guidance_loss"]
    for arm in ("trained", "untrained"):
        for record in runs[arm]:
            assert record["guidance_loss"] > 0 and record["guidance_grad_norm"] > 0


def test_a_guide_trained_elsewhere_is_used(target_job, guide_job, files, run_job, tmp_path):
    run_job(guide_job)
    trained = run_job(target_job("trained"))
    elsewhere = files.guide.rename(tmp_path / "elsewhere.pt")
    assert run_job(target_job("trained", guide_weights=str(elsewhere))) == trained


def test_guidance_pulls_the_target_towards_the_guide(target_job, run_job):
    records = run_job(target_job("untrained", epochs=6))[1]
    assert records[-1]["guidance_loss"] < 0.9 * records[0]["guidance_loss"]


def test_weight_scales_the_guidance_term(target_job, run_job):
    # A learning rate too small to move the target, so that only the weight differs.
    one, three = (
        run_job(target_job("untrained", lr=1e-12, epochs=1, weight=w))[1][0] for w in (1.0, 3.0)
    )
    assert three["guidance_loss"] == pytest.approx(3 * one["guidance_loss"], rel=1e-5)
    assert three["guidance_grad_norm"] == pytest.approx(3 * one["guidance_grad_norm"], rel=1e-4)


def test_clipping_bounds_the_gradient(target_job, run_job, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    run_job(target_job(epochs=1, clip=0.01))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)
    norms.clear()
    run_job(target_job(epochs=1))
    assert min(norms) > 0.01


def test_the_best_epoch_is_that_of_the_lowest_validation_loss(target_job, run_job):
    # A large rate, so that the best epoch is not the last.
    result, records = run_job(target_job(lr=0.1, epochs=8))
    del result["test_right"]
    best = int(np.argmin([record["val_loss"] for record in records]))
    assert best != 7 and result.pop("best_epoch") == best + 1
    assert {"val_loss", "val_accuracy", "test_loss", "test_accuracy"} == set(result)
    assert all(records[best][key] == value for key, value in result.items())


def test_the_guides_best_weights_are_saved(guide_job, files, run_job, tiny):
    job = replace(guide_job, config=replace(CONFIG, guide_epochs=6, guide_lr=0.3))
    result, records = run_job(job)
    assert result["best_epoch"] < len(records)
    guide = SETTING.guide(CONFIG, tiny)
    guide.load_state_dict(load_tensors(files.guide))
    scores = SETTING.evaluate(guide, tiny.val)
    del scores["right"]
    assert scores == {"loss": result["val_loss"], "accuracy": result["val_accuracy"]}


def test_the_test_set_steers_nothing(target_job, run_job, tiny, monkeypatch):
    first = run_job(target_job("untrained", lr=0.1, epochs=4))
    other = replace(tiny, test=replace(tiny.test, y=1 - tiny.test.y))
    monkeypatch.setattr(mnist1d, "mnist1d", lambda cache, device: other)
    second = run_job(target_job("untrained", lr=0.1, epochs=4))
    assert second != first
    for result, records in (first, second):
        del result["test_right"]
        for record in [result, *records]:
            del record["test_loss"], record["test_accuracy"]
    assert second == first


def test_a_sweep_never_scores_the_test_set(target_job, run_job, tiny, monkeypatch):
    hidden = replace(tiny, test=None)
    monkeypatch.setattr(mnist1d, "mnist1d", lambda cache, device: hidden)
    result, records = run_job(target_job(sweep=True))
    assert not [key for record in [result, *records] for key in record if key.startswith("test")]


def test_divergence_is_an_error_that_says_what_to_do_and_a_result_in_a_sweep(target_job, run_job):
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        run_job(target_job(lr=1e30))
    result, _ = run_job(target_job(lr=1e30, sweep=True))
    assert "a lower learning rate may help" in result["diverged"]


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("arm", ["none", "trained", "guide"])
def test_a_stopped_job_goes_on_bitwise(arm, target_job, guide_job, files, run_job, new_report):
    run_job(guide_job)
    if arm == "guide":
        job = replace(
            guide_job,
            config=replace(CONFIG, guide_epochs=4, guide_lr=0.3),
            files=replace(files, checkpoint_seconds=0.0),
        )
    else:
        job = target_job(arm, epochs=4, checkpoint_seconds=0.0)
    expected = run_job(job)
    weights = load_tensors(files.guide)
    files.checkpoint.unlink()

    class StoppingReport(new_report):
        def epoch(self, record):
            super().epoch(record)
            if len(self.records) > 2:
                raise Stopped

    with pytest.raises(Stopped):
        job.run(StoppingReport())
    saved = load_tensors(files.checkpoint)["state"]["records"]
    assert [record["epoch"] for record in saved] == [1, 2]
    torch.manual_seed(99)
    assert run_job(job) == expected
    again = load_tensors(files.guide)
    assert all(torch.equal(again[key], weights[key]) for key in weights)


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil, "checkpoint.pt is damaged: "),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "checkpoint.pt is damaged: "),
        (lambda p: torch.save([1], p), "starts again: "),
    ],
    ids=["a bit", "cut", "something else"],
)
def test_a_damaged_checkpoint_is_named_and_the_job_starts_again(
    damage, message, target_job, files, run_job, new_report
):
    job = target_job(epochs=3, checkpoint_seconds=0.0)
    expected = run_job(job)
    damage(files.checkpoint)
    report = new_report()
    job.run(report)
    assert len(report.notes) == 1 and message in report.notes[0]
    assert "starts again" in report.notes[0]
    for record in report.records:
        del record["seconds"]
    assert report.records == expected[1]


def test_the_checkpoint_of_another_configuration_is_refused(target_job, run_job, new_report):
    run_job(target_job(epochs=3, checkpoint_seconds=0.0))
    report = new_report()
    target_job(epochs=3, depth=5).run(report)
    assert "is of another configuration" in report.notes[0]


def test_checkpoints_keep_their_distance(target_job, files, run_job):
    run_job(target_job(epochs=3, checkpoint_seconds=1e9))
    assert not files.checkpoint.exists()
