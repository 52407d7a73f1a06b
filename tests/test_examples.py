"""The examples run, and train."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))


def run(name: str, folder: Path) -> str:
    """What the example of this name prints, in a folder for what it writes."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    done = subprocess.run([sys.executable, path], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


def test_each_example_has_a_test() -> None:
    tests = {name for name in globals() if name.startswith("test_the_")}
    assert {f"test_the_{path.stem}" for path in EXAMPLES} == tests


@pytest.mark.slow
def test_the_plain_loop(tmp_path: Path) -> None:
    printed = run("plain_loop", tmp_path)
    accuracies = re.findall(r"^(\w+): ([\d.]+) %$", printed, re.M)
    assert [name for name, _ in accuracies] == ["alone", "guided"]
    # Chance is 10 %.
    assert all(float(accuracy) > 15 for _, accuracy in accuracies)
    distances = re.findall(r"^guidance/cka/\S+~\S+ +([\d.]+)$", printed, re.M)
    assert len(distances) == 14
    assert all(0 <= float(distance) < 1 for distance in distances)


@pytest.mark.slow
def test_the_large_batch(tmp_path: Path) -> None:
    printed = run("large_batch", tmp_path)
    epochs = re.findall(r"^epoch \d: task ([\d.]+), guidance ([\d.]+)$", printed, re.M)
    tasks, terms = zip(*((float(task), float(term)) for task, term in epochs), strict=True)
    assert tasks[-1] < tasks[0]
    # Released after 5 epochs of 4 steps.
    assert 0 < terms[4] < terms[0]
    assert terms[5:] == (0.0,) * 3
    assert float(re.search(r"^test accuracy: ([\d.]+) %$", printed, re.M)[1]) > 15


@pytest.mark.slow
def test_the_lightning_callback(tmp_path: Path) -> None:
    printed = run("lightning_callback", tmp_path)
    logs = []
    for path in sorted(tmp_path.glob("logs/*/version_*/metrics.csv")):
        with path.open() as file:
            logs += [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    guided = [row for row in logs if "guidance/step" in row]
    # Stopped after 16 of the 24 guided steps; 40 steps in all.
    assert [row["guidance/step"] for row in guided] == list(range(24))
    assert sum(name.startswith("guidance/cka/") for name in guided[0]) == 5
    assert guided[16]["guidance/loss"] < 0.6 * guided[0]["guidance/loss"]
    assert logs[-1]["step"] == 40
    assert float(re.search(r"accuracy +│ +([\d.]+)", printed)[1]) > 0.15


@pytest.mark.slow
def test_the_transformers_trainer(tmp_path: Path) -> None:
    printed = run("transformers_trainer", tmp_path)
    logs = [ast.literal_eval(line) for line in re.findall(r"\{'loss'.*\}", printed)]
    steps = [int(log["guidance/step"]) for log in logs if "guidance/step" in log]
    # Every 5 steps, stopped after 20 of the 40 guided ones; 60 steps in all.
    assert steps == list(range(4, 40, 5))
    assert len(logs) == 12
    pairs = [f"guidance/cka/transformer.h.{i}~lstm" for i in (0, 1)]
    for pair in pairs:
        assert 0 < float(logs[7][pair]) < float(logs[0][pair])
    # A network that knows nothing has the logarithm of 128, 4.85.
    assert float(re.search(r"^loss of .*: ([\d.]+)$", printed, re.M)[1]) < 3.5


@pytest.mark.slow
def test_the_two_processes(tmp_path: Path) -> None:
    (path,) = (path for path in EXAMPLES if path.stem == "two_processes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", path], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Chance is 10 %.
    assert float(re.search(r"^test accuracy: ([\d.]+) %$", done.stdout, re.M)[1]) > 15
    first, second = re.search(
        r"^guidance in each process: (\S+) (\S+)$", done.stdout, re.M
    ).groups()
    # Of 14 pairs, each at most 1.
    assert first == second and 0 < float(first) < 14
