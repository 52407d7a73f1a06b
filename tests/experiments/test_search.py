"""The search for the shipped configuration."""

from __future__ import annotations

import pytest

from pyguide.experiments import search
from pyguide.experiments.config import GuideConfig
from pyguide.experiments.files import read_json, write_json


def test_the_search_covers_its_grid(tmp_path):
    config = {
        "depths": list(search.DEPTHS),
        "epochs": 1,
        "target": {"width": 128, "dropout": 0.1, "batch_size": 256, "weight": 1.0},
        "guide": vars(GuideConfig()),
    }
    tasks = search._tasks(config, tmp_path / "g.pt", done={"none depth 20 lr 0.001"})
    assert tasks[0].key == "guide"
    grid = {(t.job.arm, t.job.depth, t.job.lr) for t in tasks[1:]}
    assert len(tasks) == 45 and len(grid) == 44 and ("none", 20, 1e-3) not in grid
    assert all((t.needs == "guide") == (t.job.arm == "trained") for t in tasks[1:])


@pytest.mark.slow
def test_the_search_continues_and_never_sees_the_test_set(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "ARMS", ("none",))
    monkeypatch.setattr(search, "LEARNING_RATES", (1e-4, 1e-2))
    out = tmp_path / "results" / "search.json"
    command = ["--out", str(out), "--epochs", "2", "--depths", "2", "--workers", "2"]
    assert search.main(command) == 0
    results = read_json(out)
    assert {run["lr"] for run in results["runs"]} == {1e-4, 1e-2}
    assert not [key for run in results["runs"] for key in run if key.startswith("test")]
    best = min(results["runs"], key=lambda run: run["val_loss"])
    assert results["best"] == {"none depth 2": best}

    lost = results["runs"].pop()
    write_json(out, results)
    assert search.main(command) == 0
    again = read_json(out)["runs"]
    assert again[0] == results["runs"][0]
    assert again[1]["val_loss"] == lost["val_loss"]

    assert search.main([*command[:2], "--epochs", "3", "--depths", "2"]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--depths", "20", "1"], "--depth: expected at least 2, got 1"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--workers", "-1"], "--workers: expected at least 1, got -1"),
    ],
)
def test_the_search_checks_its_numbers(options, message, tmp_path, capsys):
    assert search.main(["--out", str(tmp_path / "s.json"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"config": {}}', '{"config": {}, "runs": [1]}', '{"config": {}, "runs": [{}]}'],
)
def test_the_search_refuses_another_file(text, tmp_path, capsys):
    out = tmp_path / "s.json"
    out.write_text(text)
    for path, message in [(out, "choose another --out"), (out / "s.json", "cannot write there")]:
        assert search.main(["--out", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error and len(error.splitlines()) == 1
    assert out.read_text() == text
