"""Trainers in two processes that share every batch train as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_two_processes_train_as_one(trainer, tmp_path):
    """Over an align-only phase, accumulation and release."""
    trained = []
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher = torchrun if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, SCRIPT, trainer, tmp_path],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        trained.append(torch.load(tmp_path / f"{processes}.pt"))
    assert trained[0]["steps"] == trained[1]["steps"] == 6
    torch.testing.assert_close(trained[0]["state"], trained[1]["state"], rtol=1e-9, atol=1e-12)
