"""A run that is killed again and again gives the results of one that is not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run_folder import without_times

from pyguide.files import read_json

PROGRAM = Path(__file__).with_name("killed_run.py")
OPTIONS = ["--arms", "none", "trained", "--depth", "3", "--epochs", "4", "--guide-epochs", "2"]
OPTIONS += ["--sweep", "--lrs", "1e-3", "1e-2", "--seeds", "1", "--workers", "2"]


@pytest.fixture
def launch(tmp_path):
    def launch(event, number, *options):
        counter = tmp_path / "counter"
        counter.unlink(missing_ok=True)
        program = [sys.executable, str(PROGRAM), event, str(number), str(counter)]
        command = ["train", "deep-fcn", "--checkpoint-every", "0", *map(str, options)]
        return subprocess.Popen([*program, *command], stderr=subprocess.PIPE, text=True)

    return launch


def logs(folder):
    """Every job's records and result, without times."""
    return {
        path.name: [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        for path in (folder / "jobs").iterdir()
    }


@pytest.mark.slow
def test_five_kills_leave_no_trace(launch, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = launch("never", 0, *OPTIONS, "--out", whole)
    process.communicate()
    assert process.returncode == 0

    draw = random.Random(5)
    kills = [
        ("step", draw.randint(20, 80)),  # In the middle of an epoch of the sweep.
        ("write", draw.randint(3, 8)),
        ("time", draw.uniform(3, 8)),
        ("step", draw.randint(20, 60)),
        ("write", draw.randint(4, 10)),
    ]
    options = [*OPTIONS, "--out", killed]
    for event, number in kills:
        if event == "time":
            process = launch("never", 0, *options)
            time.sleep(number)
            process.kill()
        else:
            process = launch(event, number, *options)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        options = ["--workers", "2", "--resume", killed]
    process = launch("never", 0, *options)
    errors = process.communicate()[1]
    assert process.returncode == 0 and "damaged" not in errors

    expected, results = (read_json(folder / "results.json") for folder in (whole, killed))
    assert len(results["runs"]) == 2 and len(results["sweep"]) == 4
    assert without_times(results) == without_times(expected)
    assert logs(killed) == logs(whole)
    assert not list(killed.rglob(".*.tmp")) and not list(killed.glob("checkpoints/*"))
    # It did go on from checkpoints, and not from the start each time.
    assert int(errors.split(" job")[0]) < 8
