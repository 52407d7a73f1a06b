"""The folder of a run: its files, resume, damage, locking."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pyguide.cli import main
from pyguide.experiments import deep_fcn
from pyguide.experiments.files import read_json, write_json
from pyguide.experiments.mnist1d import Data

TRAIN = ["train", "deep-fcn"]
TINY = ["--arms", "none", "--depth", "3", "--epochs", "2", "--workers", "1"]


def test_a_run_folder_and_its_resume(tiny_data, jobs_in_threads, tmp_path, capfd):
    out = tmp_path / "new" / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "2", "--out", str(out)]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert not set(printed.out + printed.err) & {"\r", "\x1b"}
    assert len(printed.err.splitlines()) == 3
    assert "paper: ImageNet, top-5 accuracy (%)" in printed.out

    names = {"config.json", "metrics.jsonl", "results.json", "table.md", "curves.png", "data.npz"}
    assert {path.name for path in out.iterdir()} == {*names, ".lock"}
    config = read_json(out / "config.json")
    assert config["config"]["depth"] == 3 and config["versions"]["torch"] == torch.__version__
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted((m["seed"], m["epoch"]) for m in metrics) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    results = read_json(out / "results.json")
    runs = {run["key"]: run for run in results["runs"]}
    assert list(runs) == ["none-seed1", "none-seed2"] and results["failed"] == {}
    accuracies = [run["test_accuracy"] for run in results["runs"]]
    assert results["summary"]["test_accuracy"]["none"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    assert main(command) == 2
    assert "choose another" in capfd.readouterr().err
    assert read_json(out / "results.json") == results

    # As an interruption leaves it: one job done, the other cut in the middle of a line.
    results["runs"] = [runs["none-seed2"]]
    del results["summary"]
    write_json(out / "results.json", results)
    (out / "table.md").unlink()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"key": "none-se')
    assert main([*TRAIN, "--resume", str(out)]) == 0
    resumed = {run["key"]: run for run in read_json(out / "results.json")["runs"]}
    assert list(resumed) == ["none-seed1", "none-seed2"]
    assert resumed["none-seed2"] == runs["none-seed2"]
    for run in (resumed["none-seed1"], runs["none-seed1"]):
        del run["seconds"]
    assert resumed == runs
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted((m["seed"], m["epoch"]) for m in lines) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (out / "table.md").exists()


def test_a_folder_has_one_writer_at_a_time(finished_folder, capsys):
    writer = deep_fcn.RunFolder.open(finished_folder)
    before = {path.name: path.read_bytes() for path in finished_folder.iterdir()}
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    assert f"another process is writing to {finished_folder}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished_folder.iterdir()} == before
    writer.close()
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0


def replace_by_a_folder(path) -> None:
    path.unlink()
    path.mkdir()


def set_config(path, **changes) -> None:
    config = read_json(path)
    config["config"] |= changes
    write_json(path, config)


def generate_without_test(path) -> None:
    replace(Data.load(path), x_test=None, y_test=None).save(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", lambda p: p.write_text("{"), "not a run folder"),
        ("config.json", lambda p: p.write_text("[]"), "config.json is of something else"),
        ("config.json", lambda p: write_json(p, {**read_json(p), "experiment": "x"}), "else"),
        ("config.json", lambda p: set_config(p, lr={}), "arm none has no learning rate"),
        ("config.json", lambda p: set_config(p, lr=[1]), "not a run folder"),
        ("config.json", lambda p: set_config(p, depth="3"), "not a run folder"),
        ("results.json", lambda p: p.write_text("[]"), "results.json is of something else"),
        ("results.json", lambda p: p.write_text('{"experiment": "deep-fcn"}'), "lacks 'guides'"),
        ("results.json", lambda p: write_json(p, {**read_json(p), "runs": 1}), "not a run folder"),
        ("results.json", replace_by_a_folder, "not a run folder"),
        ("metrics.jsonl", replace_by_a_folder, "cannot write there"),
        (".lock", replace_by_a_folder, "cannot write there"),
        ("data.npz", lambda p: p.write_text("x"), "data.npz is damaged: delete it"),
        ("data.npz", lambda p: p.write_bytes(b""), "data.npz is damaged"),
        ("data.npz", lambda p: p.write_bytes(p.read_bytes()[:-99]), "data.npz is damaged"),
        ("data.npz", lambda p: p.write_bytes(p.read_bytes()[:99] * 99), "data.npz is damaged"),
        ("data.npz", lambda p: generate_without_test(p), "data.npz is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(name, damage, message, finished_folder, capsys):
    damage(finished_folder / name)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(finished_folder) in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("line", [b"1\n", b"{}\n", b'{"key": []}\n', b"\xff\n"])
def test_damaged_metrics_are_dropped(line, finished_folder):
    path = finished_folder / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(line + before + line)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    assert path.read_bytes() == before


def test_a_damaged_result_is_computed_again(finished_folder):
    path = finished_folder / "results.json"
    before = read_json(path)
    write_json(path, {**before, "runs": [1, {"key": "none-seed1"}]})
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    again = read_json(path)
    for results in (before, again):
        del results["runs"][0]["seconds"]
    assert again == before


def test_a_full_disk_is_one_line(tiny_data, jobs_in_threads, tmp_path, capsys, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Data, "save", full)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "cannot write there: No space left on device" in error and len(error.splitlines()) == 1
    assert main([*TRAIN, "--resume", str(out)]) == 0
