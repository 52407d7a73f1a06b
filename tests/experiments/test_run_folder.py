"""The folder of a run: its files, resume, damage, locking."""

from __future__ import annotations

import json

import pytest
import torch

from pyguide.cli import main
from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.harness.folder import RunFolder
from pyguide.files import read_json, write_json

TRAIN = ["train", "deep-fcn"]
TINY = ["--arms", "none", "--depth", "3", "--epochs", "2", "--workers", "1"]


def without_times(value):
    """The value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "times")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_run_folder_and_its_resume(tiny_data, jobs_in_threads, tmp_path, capfd):
    out = tmp_path / "new" / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "2", "--out", str(out)]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert not set(printed.out + printed.err) & {"\r", "\x1b"}
    assert len(printed.err.splitlines()) == 3
    assert "paper: ImageNet, top-5 accuracy (%)" in printed.out

    names = {"config.json", "jobs", "results.json", "table.md", "curves.png", "differences.png"}
    names.add(".lock")
    assert {path.name for path in out.iterdir()} == names
    config = read_json(out / "config.json")
    assert config["config"]["depth"] == 3 and config["versions"]["torch"] == torch.__version__
    for seed in (1, 2):
        text = (out / "jobs" / f"none-seed{seed}.jsonl").read_text()
        job, *epochs, result = [json.loads(line) for line in text.splitlines()]
        assert job["job"]["seed"] == seed and [record["epoch"] for record in epochs] == [1, 2]
        assert 0 <= result["result"]["test_accuracy"] <= 1
    results = read_json(out / "results.json")
    assert [run["key"] for run in results["runs"]] == ["none-seed1", "none-seed2"]
    assert results["failed"] == {} and results["learning_rates"] == {"none": 0.01}
    statistics = results["summary"]["none"]["test"]
    assert statistics["mean"] == pytest.approx(sum(statistics["by_seed"].values()) / 2)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    assert main(command) == 2
    assert "choose another" in capfd.readouterr().err
    assert read_json(out / "results.json") == results

    # As an interruption leaves it: one job done, the other cut in the middle of a line.
    (out / "results.json").unlink()
    (out / "table.md").unlink()
    unfinished = out / "jobs" / "none-seed1.jsonl"
    unfinished.write_text(unfinished.read_text()[:-30])
    (out / "jobs" / ".none-seed1.jsonl.abc.tmp").write_text("half")
    finished = (out / "jobs" / "none-seed2.jsonl").read_bytes()
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert without_times(read_json(out / "results.json")) == without_times(results)
    assert (out / "jobs" / "none-seed2.jsonl").read_bytes() == finished
    assert sorted(path.name for path in (out / "jobs").iterdir()) == [
        "none-seed1.jsonl",
        "none-seed2.jsonl",
    ]
    assert (out / "table.md").exists()
    assert "1 job, " in capfd.readouterr().err


def test_a_folder_has_one_writer_at_a_time(finished_folder, capsys):
    writer = RunFolder.open(finished_folder, EXPERIMENT, 60.0)
    before = {path: path.read_bytes() for path in finished_folder.rglob("*") if path.is_file()}
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    assert f"another process is writing to {finished_folder}" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in finished_folder.rglob("*") if p.is_file()}
    writer.close()
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0


def replace_by_a_folder(path) -> None:
    path.unlink()
    path.mkdir()


def set_config(path, **changes) -> None:
    config = read_json(path)
    config["config"] |= changes
    write_json(path, config)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", lambda p: p.write_text("{"), "not a run folder"),
        ("config.json", lambda p: p.write_text("[]"), "config.json is of something else"),
        ("config.json", lambda p: write_json(p, {**read_json(p), "experiment": "x"}), "else"),
        (
            "config.json",
            lambda p: write_json(p, {**read_json(p), "scale": "x"}),
            "not a run folder",
        ),
        ("config.json", lambda p: set_config(p, lr={}), "arm none has no learning rate"),
        ("config.json", lambda p: set_config(p, lr=[1]), "not a run folder"),
        ("config.json", lambda p: set_config(p, depth="3"), "not a run folder"),
        ("config.json", lambda p: set_config(p, new=3), "not a run folder"),
        (".lock", replace_by_a_folder, "cannot write there"),
        ("results.json", replace_by_a_folder, "cannot write there"),
    ],
)
def test_a_damaged_folder_is_one_line(name, damage, message, finished_folder, capsys):
    damage(finished_folder / name)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and str(finished_folder) in error


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"epoch": 2', '"epoch": 1'),
        lambda text: text.replace('"result"', '"resul"'),
        lambda text: "1\n" + text,
        lambda text: text[:-5],
        lambda text: "",
        lambda text: text.replace('"seed": 1', '"seed": 2'),
    ],
)
def test_a_damaged_job_is_run_again(damage, finished_folder):
    path = finished_folder / "jobs" / "none-seed1.jsonl"
    before = read_json(finished_folder / "results.json")
    text = path.read_text()
    path.write_text(damage(text))
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    assert without_times(read_json(finished_folder / "results.json")) == without_times(before)
    again, once = ([json.loads(line) for line in t.splitlines()] for t in (path.read_text(), text))
    assert without_times(again) == without_times(once)


def test_other_versions_are_told(finished_folder, capsys):
    path = finished_folder / "config.json"
    config = read_json(path)
    config["versions"]["torch"] = "1.0"
    write_json(path, config)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    assert f"began with torch 1.0, this is {torch.__version__}" in capsys.readouterr().err


def test_a_folder_that_a_kill_left_with_its_lock_alone_is_new(
    tiny_data, jobs_in_threads, tmp_path, capsys
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    command = [*TRAIN, *TINY, "--seeds", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert main(command) == 2 and "exists: choose another" in capsys.readouterr().err


def test_a_damaged_guide_is_trained_again(tiny_data, jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--arms", "trained", "--depth", "3", "--epochs", "1", "--guide-epochs", "1"]
    command = [*TRAIN, *options, "--workers", "1", "--seeds", "1", "--out", str(out)]
    assert main(command) == 0
    before = read_json(out / "results.json")
    weights = out / "guides" / "guide-seed1.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    # A finished run does not need its guide; an unfinished one does.
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert weights.read_bytes() == content[:-9]
    (out / "jobs" / "trained-seed1.jsonl").unlink()
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert "guide seed 1: trained again: " in capsys.readouterr().err
    assert without_times(read_json(out / "results.json")) == without_times(before)


def test_a_full_disk_is_one_line(tiny_data, jobs_in_threads, tmp_path, capsys, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "cannot write there: No space left on device" in error and len(error.splitlines()) == 1
