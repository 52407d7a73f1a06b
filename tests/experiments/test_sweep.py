"""Learning rates: swept, picked, and the final runs at them; values varied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyguide.cli import main
from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.harness import mnist1d
from pyguide.experiments.harness.grid import extended_sweep, pick, sweep_tasks, with_guides
from pyguide.experiments.harness.jobs import Files
from pyguide.files import read_json

TRAIN = ["train", "deep-fcn"]
TINY = ["--depth", "3", "--epochs", "2", "--workers", "1"]
SETTING = EXPERIMENT.scales["default"]


def test_the_search_behind_the_shipped_configuration(tmp_path):
    """Depths 20, 32 and 50, five rates and three arms with seed 0, as a sweep."""
    config = SETTING.config.changed({"sweep": True, "seeds": (), "vary": ["depth=20,32,50"]})
    files = Files(tmp_path, tmp_path / "c", 60.0, tmp_path / "g")
    tasks = with_guides(sweep_tasks(SETTING, config, lambda key, guide: files), lambda *_: files)
    # The guide does not depend on the target's depth.
    guides, targets = tasks[:1], tasks[1:]
    assert [task.key for task in guides] == ["guide-seed0"]
    grid = {(task.job.arm.guide, task.job.config.depth, task.job.lr) for task in targets}
    assert len(targets) == 45 == len(grid) and {lr for *_, lr in grid} == {
        1e-4,
        3e-4,
        1e-3,
        3e-3,
        1e-2,
    }
    assert all(task.job.sweep and task.job.seed == 0 for task in targets)
    for task in targets:
        assert task.needs == ("guide-seed0" if task.job.arm.guide == "trained" else None)
    costs = [task.cost for task in targets]
    assert costs == sorted(costs, reverse=True)


def test_the_lowest_validation_loss_is_picked():
    runs = [
        {"arm": "a", "lr": 1.0, "val_loss": 2.0},
        {"arm": "a", "lr": 2.0, "val_loss": 1.0},
        {"arm": "a", "lr": 3.0, "val_loss": 1.0},
        {"arm": "a", "lr": 4.0, "diverged": "nan"},
        {"arm": "b", "lr": 4.0, "diverged": "nan"},
    ]
    assert pick(runs) == {"a": 2.0}


@pytest.mark.parametrize(
    ("lrs", "losses", "beyond"),
    [
        ([1e-3, 3e-3, 1e-2], [3.0, 2.0, 1.0], 3e-2),
        ([3e-3, 1e-2, 1e-3], [2.0, 1.0, 3.0], 3e-2),
        ([1e-3, 3e-3, 1e-2], [1.0, 2.0, 3.0], 3e-4),
        ([1e-3, 3e-3, 1e-2], [2.0, 1.0, 3.0], None),
        ([1e-3, 3e-3, 1e-2], [2.0, 1.0, "diverged"], None),
        ([1e-3, 3e-3, 1e-2], [1.0, "diverged", "diverged"], 3e-4),
        ([1e-3, 3e-3, 1e-2], ["diverged", "diverged", "diverged"], None),
        ([1e-3, 3e-3, 1e-2], [1.0, 2.0, None], None),  # One is not done.
        ([1e-3, 3e-3, 1e-2, 3e-2], [4.0, 3.0, 2.0, 1.0], 1e-1),
        ([2e-3, 1e-3], [1.0, 2.0], 4e-3),
        ([1e-3], [1.0], None),
    ],
)
def test_the_rate_beyond_an_edge(tmp_path, lrs, losses, beyond):
    config = replace(SETTING.config, sweep=True, lrs=tuple(lrs), arms=("none",), extend=1)
    files = Files(tmp_path, tmp_path / "c", 60.0, tmp_path / "g")
    swept = sweep_tasks(SETTING, config, lambda key, guide: files)
    runs = [
        {"arm": "none", "lr": lr, **({"diverged": "nan"} if loss == "diverged" else {})}
        | ({"val_loss": loss} if isinstance(loss, float) else {})
        for lr, loss in zip(lrs, losses, strict=True)
        if loss is not None
    ]
    more = extended_sweep(SETTING, config, lambda key, guide: files, swept, runs)
    assert [task.job.lr for task in more] == ([] if beyond is None else [beyond])
    assert all(task.key == f"sweep-none-lr{beyond!r}" and task.job.sweep for task in more)


def test_a_sweep_goes_on_beyond_an_edge(tiny_data, jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    rates = ["--sweep", "--lrs", "1e-7", "3e-7", "--extend", "2"]
    options = ["--arms", "none", "untrained", *rates, "--seeds", "1"]
    assert main([*TRAIN, *TINY, *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    swept = {run["lr"]: run["val_loss"] for run in results["sweep"] if run["arm"] == "none"}
    # Here more is better, and two rates beyond are the most.
    assert sorted(swept) == [1e-7, 3e-7, 9e-7, 2.7e-6]
    assert min(swept, key=swept.get) == 2.7e-6
    assert results["learning_rates"] == {"none": 2.7e-6, "untrained": 2.7e-6}
    assert [run["lr"] for run in results["runs"]] == [2.7e-6, 2.7e-6]
    report = (out / "table.md").read_text()
    assert "| lr 1e-07 | lr 3e-07 | lr 9e-07 | lr 2.7e-06 |" in report
    assert "Picked at the edge of the rates" in report and "[10/10]" in capsys.readouterr().err

    # What was swept beyond is part of the run, and is found again.
    (out / "jobs" / "sweep-none-lr9e-07.jsonl").unlink()
    assert main([*TRAIN, "--resume", str(out)]) == 0
    again = read_json(out / "results.json")
    assert again["learning_rates"] == results["learning_rates"] and again["runs"] == results["runs"]
    assert [run["val_loss"] for run in again["sweep"]] == [r["val_loss"] for r in results["sweep"]]
    assert "arm untrained" not in capsys.readouterr().err


def test_a_sweep_then_the_final_runs(tiny_data, jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--arms", "none", "untrained", "--sweep", "--lrs", "1e-8", "1e-2", "1e30"]
    assert main([*TRAIN, *TINY, *options, "--seeds", "1", "2", "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert len(results["sweep"]) == 6 and all(run["seed"] == 0 for run in results["sweep"])
    assert sum("diverged" in run for run in results["sweep"]) == 2
    assert not [key for run in results["sweep"] for key in run if key.startswith("test")]
    assert results["learning_rates"] == {"none": 1e-2, "untrained": 1e-2}
    assert {(run["arm"], run["seed"], run["lr"]) for run in results["runs"]} == {
        (arm, seed, 1e-2) for arm in ("none", "untrained") for seed in (1, 2)
    }
    report = (out / "table.md").read_text()
    assert "lowest validation loss" in report and "diverged" in report
    assert "[10/10]" in capsys.readouterr().err

    # The final runs go on at the picked rates.
    (out / "jobs" / "none-seed1.jsonl").unlink()
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert "1 job, " in capsys.readouterr().err
    assert len(read_json(out / "results.json")["runs"]) == 4


def test_an_arm_that_diverges_at_every_rate_fails_alone(
    tiny_data, jobs_in_threads, tmp_path, capsys
):
    out = tmp_path / "run"
    options = ["--arms", "none", "--vary", "depth=2,3", "--sweep", "--lrs", "1e30", "--seeds", "1"]
    assert main([*TRAIN, *TINY[2:], *options, "--out", str(out)]) == 1
    failed = read_json(out / "results.json")["failed"]
    assert set(failed) == {"none,depth=2-seed1", "none,depth=3-seed1"}
    assert "its sweep gave no learning rate" in failed["none,depth=2-seed1"]
    assert "2 of the runs failed" in capsys.readouterr().err


def test_values_are_varied_with_a_baseline_each(tiny_data, jobs_in_threads, tmp_path):
    out = tmp_path / "run"
    options = ["--arms", "none", "untrained", "--vary", "depth=3,4", "--seeds", "1"]
    assert main([*TRAIN, *TINY[2:], *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    summary = results["summary"]
    assert set(summary) == {f"{a},depth={d}" for a in ("none", "untrained") for d in (3, 4)}
    for depth in (3, 4):
        own = summary[f"untrained,depth={depth}"]
        assert own["baseline"] == f"none,depth={depth}"
        baseline = summary[own["baseline"]]["test"]["mean"]
        assert own["difference"]["mean"] == pytest.approx(own["test"]["mean"] - baseline)
    assert "no guide, depth 4" in (out / "table.md").read_text()
    # The same as a run of that depth alone.
    alone = tmp_path / "alone"
    command = [*TRAIN, *TINY[2:], "--arms", "none", "--depth", "4", "--seeds", "1"]
    assert main([*command, "--out", str(alone)]) == 0
    (run,) = read_json(alone / "results.json")["runs"]
    (same,) = (r for r in results["runs"] if r["arm"] == "none,depth=4")
    assert run["val_loss"] == same["val_loss"] and run["test_loss"] == same["test_loss"]


def test_a_sweep_alone_never_sees_the_test_set(tiny, jobs_in_threads, tmp_path, monkeypatch):
    hidden = replace(tiny, test=None)
    monkeypatch.setattr(mnist1d, "mnist1d", lambda cache, device: hidden)
    out = tmp_path / "run"
    options = ["--arms", "none", "--sweep-only", "--lrs", "1e-3"]
    assert main([*TRAIN, *TINY, *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert len(results["sweep"]) == 1 and results["runs"] == []
    assert not (out / "curves.png").exists() and "lr 0.001" in (out / "table.md").read_text()
