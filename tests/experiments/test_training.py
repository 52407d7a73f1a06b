"""One job: a guide or a target trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyguide.experiments import training
from pyguide.experiments.config import ARMS, GuideConfig
from pyguide.experiments.mnist1d import Data
from pyguide.experiments.training import GuideJob, TargetJob


def target_job(**changes) -> TargetJob:
    job = TargetJob(
        arm="none",
        seed=3,
        lr=1e-3,
        depth=6,
        width=32,
        dropout=0.1,
        epochs=2,
        batch_size=128,
        weight=1.0,
        device="cpu",
    )
    return replace(job, **changes)


def run_job(job, data: Data) -> tuple[dict, list[dict]]:
    """The result and the records of a job, without their times."""
    records: list[dict] = []
    result = job.run(data, records.append)
    for record in [result, *records]:
        assert record.pop("seconds") >= 0
    return result, records


@pytest.mark.slow
def test_the_shipped_guide_reaches_95_percent(mnist1d, tmp_path, one_thread):
    job = GuideJob(seed=1, device="cpu", weights=str(tmp_path / "g.pt"), **vars(GuideConfig()))
    result, records = run_job(job, mnist1d)
    assert result["test_accuracy"] >= 0.95
    assert len(records) == GuideConfig().epochs


@pytest.mark.parametrize("arm", ARMS)
def test_a_job_depends_on_its_fields_alone(arm, tiny, tmp_path, one_thread):
    weights = str(tmp_path / "guide.pt")
    guide = GuideJob(seed=3, epochs=1, lr=1e-2, batch_size=128, device="cpu", weights=weights)
    first_guide = run_job(guide, tiny)
    state = torch.load(weights)
    job = target_job(arm=arm, weights=weights)
    torch.manual_seed(0)
    first = run_job(job, tiny)
    torch.manual_seed(123)
    assert run_job(job, tiny) == first
    assert run_job(replace(job, seed=4), tiny) != first
    assert run_job(guide, tiny) == first_guide
    again = torch.load(weights)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_arms_of_a_seed_start_from_the_same_target_and_batch(tiny, tmp_path, one_thread):
    weights = str(tmp_path / "guide.pt")
    run_job(GuideJob(3, 2, 1e-2, 128, "cpu", weights), tiny)
    runs = {arm: run_job(target_job(arm=arm, weights=weights), tiny)[1] for arm in ARMS}
    # The norm in the first batch is taken before the arms have parted.
    assert len({run[0]["task_grad_norm"] for run in runs.values()}) == 1
    assert len({run[-1]["val_loss"] for run in runs.values()}) == 3
    assert "guidance_loss" not in runs["none"][0]
    assert runs["trained"][0]["guidance_loss"] != runs["untrained"][0]["guidance_loss"]
    for arm in ("trained", "untrained"):
        for record in runs[arm]:
            assert record["guidance_loss"] > 0 and record["guidance_grad_norm"] > 0


def test_guidance_pulls_the_target_towards_the_guide(tiny, one_thread):
    records = run_job(target_job(arm="untrained", epochs=6), tiny)[1]
    assert records[-1]["guidance_loss"] < 0.9 * records[0]["guidance_loss"]


def test_weight_scales_the_guidance_term(tiny, one_thread):
    # A learning rate too small to move the target, so that only the weight differs.
    one, three = (
        run_job(target_job(arm="untrained", lr=1e-12, epochs=1, weight=w), tiny)[1][0]
        for w in (1.0, 3.0)
    )
    assert three["guidance_loss"] == pytest.approx(3 * one["guidance_loss"], rel=1e-5)
    assert three["guidance_grad_norm"] == pytest.approx(3 * one["guidance_grad_norm"], rel=1e-4)


def test_the_test_set_is_scored_once_with_the_best_epochs_weights(tiny, monkeypatch, one_thread):
    scored = []
    evaluate = training._evaluate

    def spy(model, split):
        loss, accuracy = evaluate(model, split)
        scored.append((len(split[1]), loss, {k: v.clone() for k, v in model.state_dict().items()}))
        return loss, accuracy

    monkeypatch.setattr(training, "_evaluate", spy)
    # A large rate, so that the best epoch is not the last.
    result, records = run_job(target_job(lr=0.1, epochs=8), tiny)
    assert [n for n, *_ in scored] == [100] * 8 + [200]
    losses = [record["val_loss"] for record in records]
    best = int(np.argmin(losses))
    assert best != 7
    assert result["best_epoch"] == best + 1 and result["val_loss"] == losses[best]
    assert result["val_accuracy"] == records[best]["val_accuracy"]
    assert result["test_loss"] == scored[-1][1]
    assert all(torch.equal(value, scored[best][2][key]) for key, value in scored[-1][2].items())
    assert not all(torch.equal(value, scored[7][2][key]) for key, value in scored[-1][2].items())


def test_without_a_test_set_nothing_is_scored(tiny, one_thread):
    result, _ = run_job(target_job(), replace(tiny, x_test=None, y_test=None))
    assert not [key for key in result if key.startswith("test")]


def test_divergence_is_an_error_that_says_what_to_do(tiny, one_thread):
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        run_job(target_job(lr=1e30), tiny)
