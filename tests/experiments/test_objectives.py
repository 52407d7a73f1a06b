"""What a model is trained on besides its task: guidance, distillation, an alignment before."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyguide.experiments import ablations, deep_fcn, fcn_init
from pyguide.experiments.harness.initialization import align
from pyguide.experiments.harness.jobs import Files, TargetJob
from pyguide.experiments.harness.objectives import Distilled, Guided, Objective
from pyguide.guidance import Guidance

SETTING = deep_fcn.EXPERIMENT.scales["default"]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(64, 40), torch.randint(10, (64,))


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 10))


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 4.0), (0.0, 3.0)])
def test_distillation_is_its_formula(alpha, temperature, batch):
    x, y = batch
    model, teacher = network(1), network(2)
    found = Distilled(SETTING, teacher, alpha=alpha, temperature=temperature)(model, x, y)
    own, taught = model(x).double(), teacher(x).double()
    p, q = ((z / temperature).softmax(dim=1) for z in (taught, own))
    divergence = (p * (p / q).log()).sum(dim=1).mean()
    expected = (1 - alpha) * F.cross_entropy(own, y) + alpha * temperature**2 * divergence
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(found.parts) == {"task", "distillation"}
    found.total.backward()
    assert all(p.grad is None for p in teacher.parameters()) and model[0].weight.grad is not None


def test_a_teacher_does_not_change(batch):
    teacher = nn.Sequential(nn.Linear(40, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 10))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Distilled(SETTING, teacher, alpha=0.5, temperature=2.0)
    first = objective(network(1), *batch).total
    assert objective(network(1), *batch).total == first
    assert all(torch.equal(before[name], v) for name, v in teacher.state_dict().items())


def test_the_step_of_a_distillation_is_timed(batch):
    objective = Distilled(SETTING, network(2), alpha=0.5, temperature=2.0)
    assert objective.times() == {}
    model = network(1)
    objective(model, *batch).total.backward()
    objective.step()
    times = objective.times()
    assert set(times) == {"guide", "step"} and 0 < times["guide"] < times["step"]


def test_a_guided_loss_is_the_sum_and_its_step_is_timed(batch):
    x, y = batch
    model = network(1)
    objective = Guided(SETTING, Guidance(model, network(2), timed=True))
    for _ in range(2):
        losses = objective(model, x, y)
        assert losses.total == losses.parts["task"] + losses.parts["guidance"]
        losses.total.backward()
        objective.step()
    times = objective.times()
    assert set(times) == {"guide", "distances", "backward", "step"} and min(times.values()) > 0
    assert times["step"] > times["guide"] + times["distances"] + times["backward"]
    assert Objective(SETTING)(model, x, y).total == F.cross_entropy(model(x), y)


def test_alignment_brings_the_target_nearer_without_labels(tiny):
    guidance = Guidance(network(1), network(2))
    without_labels = replace(tiny.train, y=torch.full_like(tiny.train.y, -1))
    options = {"steps": 60, "lr": 1e-2, "batch_size": 128, "seed": 0}
    record = align(guidance, without_labels, noise=True, **options)
    assert record["steps"] == 60 and record["last_loss"] < 0.7 * record["first_loss"]


@pytest.fixture
def init_job(tmp_path, tiny_data, one_thread):
    setting = fcn_init.EXPERIMENT.scales["default"]
    config = replace(setting.config, width=16, epochs=3, batch_size=128, align_steps=5)
    files = Files(tmp_path, tmp_path / "checkpoint.pt", 1e9, tmp_path / "guide.pt")

    def make(arm, **changes):
        chosen = next(a for a in setting.arms if a.name == arm)
        own = replace(files, checkpoint_seconds=changes.pop("checkpoint_seconds", 1e9))
        return TargetJob(setting, replace(config, **changes), chosen, 1, 1e-3, False, own)

    return make


def test_arms_that_are_aligned_first_train_alone_on_the_same_batches(
    init_job, new_report, monkeypatch
):
    reports = {name: new_report() for name in ("none", "data", "noise")}
    results = {name: init_job(name).run(report) for name, report in reports.items()}
    assert "initialization" not in results["none"]
    for name in ("data", "noise"):
        assert results[name]["initialization"]["steps"] == 5
        assert 0 < results[name]["initialization"]["seconds"] < results[name]["seconds"]
        assert all("guidance_loss" not in record for record in reports[name].records)
    first = {report.records[0]["task_loss"] for report in reports.values()}
    assert len(first) == 3
    # What is told of the time has the alignment in it.
    monkeypatch.setattr(fcn_init, "align", lambda *_, **__: {"slept": time.sleep(0.5) or 0.5})
    report = new_report()
    assert init_job("data").run(report)["seconds"] >= 0.5 <= report.records[0]["seconds"]


def test_an_alignment_that_does_nothing_changes_nothing(init_job, new_report):
    expected = new_report()
    init_job("none").run(expected)
    # An alignment that does not move the target leaves the training as it is without one, but for
    # the statistics of its BatchNorm layers, which training does not use.
    report = new_report()
    init_job("data", align_lr=1e-30).run(report)
    for own, alone in zip(report.records, expected.records, strict=True):
        assert own["task_loss"] == alone["task_loss"]


def test_an_aligned_job_goes_on_without_aligning_again(init_job, new_report, monkeypatch):
    expected = init_job("noise").run(new_report())

    class Stopping(new_report):
        def epoch(self, record):
            super().epoch(record)
            if len(self.records) == 2:
                raise KeyboardInterrupt

    job = init_job("noise", checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        job.run(Stopping())
    monkeypatch.setattr(fcn_init, "align", None)
    found = job.run(new_report())
    for result in (found, expected):
        del result["seconds"], result["initialization"]["seconds"]
    assert found == expected


ABLATIONS = ablations.EXPERIMENT.scales["default"]


@pytest.mark.parametrize("name", [arm.name for arm in ABLATIONS.arms])
def test_every_ablation_trains(name, tiny, tiny_data, one_thread, tmp_path, new_report):
    arm = next(arm for arm in ABLATIONS.arms if arm.name == name)
    config = replace(ABLATIONS.config, epochs=1, width=16, **arm.changes)
    config = replace(config, batch_size=min(config.batch_size, 256))
    guide = ABLATIONS.guide(config, tiny)
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    config = replace(config, guide_weights=str(tmp_path / "guide.pt"))
    files = Files(tmp_path, tmp_path / "checkpoint.pt", 1e9, tmp_path / "guide.pt")
    report = new_report()
    TargetJob(ABLATIONS, config, arm, 1, 1e-3, False, files).run(report)
    extra = {"distillation": "distillation_loss", "guidance": "guidance_loss"}.get(arm.method)
    assert (extra in report.records[0]) == (arm.guide != "none")


def test_what_the_paper_did_not_measure_has_no_verdict():
    unknown = ("debiased", "batch", "weight", "release", "calibrated")
    for arm in ABLATIONS.arms:
        if any(word in arm.name for word in unknown):
            assert arm.expected is None and arm.paper is None, arm.name
        elif arm.name != "none":
            assert arm.expected is not None or arm.paper is not None, arm.name


def test_slow_ablations_start_first():
    cost = {
        arm.name: ABLATIONS.cost(replace(ABLATIONS.config, **arm.changes), arm)
        for arm in ABLATIONS.arms
    }
    for slow in ("untrained-ridge", "untrained-rsa", "untrained-batch-16", "untrained-batch-1024"):
        assert cost[slow] > cost["untrained"] == cost["untrained-noise"] > cost["none"]


def test_varied_main_arms_are_still_compared():
    config = ABLATIONS.config.changed({"vary": ["depth=20,50"], "arms": ("none", "untrained-rsa")})
    compared = [arm.name for arm in ABLATIONS.variants(config) if ABLATIONS.is_compared(arm)]
    assert compared == ["none,depth=20", "none,depth=50"]


def test_ablations_differ_from_their_baseline_in_one_factor():
    arms = {arm.name: arm for arm in ABLATIONS.arms}
    for arm in arms.values():
        assert len(arm.changes) <= 1
        if arm.baseline is not None:
            baseline = arms[arm.baseline]
            method = arm.method != baseline.method or arm.name.endswith("shared")
            differing = (arm.guide != baseline.guide) + (arm.changes != baseline.changes) + method
            assert differing >= 1
            # Against no guide, the guide is the second: the paper's comparison.
            assert differing == 1 or baseline.guide == "none"


def test_two_guide_layers_share_a_target_layer(tiny):
    config = ABLATIONS.config
    target, guide = ABLATIONS.target(config, tiny), ABLATIONS.guide(config, tiny)
    arm = next(arm for arm in ABLATIONS.arms if arm.name == "untrained-shared")
    guidance = ABLATIONS.guidance(target, guide, config, arm)
    even = ABLATIONS.guidance(target, guide, config, ABLATIONS.arms[2])
    with even.capture():
        target(tiny.train.x[:64])
    even.loss(tiny.train.x[:64])
    assert [path for _, path in guidance.pairs] == [path for _, path in even.pairs]
    used = [path for path, _ in guidance.pairs]
    assert len(set(used)) == 7 and used == sorted(used, key=lambda path: int(path.split(".")[0]))
    assert set(used) <= {path for path, _ in even.pairs}
