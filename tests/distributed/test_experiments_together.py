"""Experiments whose jobs several processes do together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyguide.data.splits import Splits, TensorSplit
from pyguide.experiments import find_experiments
from pyguide.experiments.harness.checkpoint import Checkpoint
from pyguide.experiments.harness.initialization import align
from pyguide.experiments.harness.objectives import Guided
from pyguide.experiments.harness.shares import Processes
from pyguide.experiments.harness.trainer import Trainer
from pyguide.guidance import Guidance

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pyguide"]


class Silent:
    def epoch(self, record):
        pass

    def restored(self, records):
        pass

    def note(self, text):
        pass


def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 6, generator=generator, dtype=torch.float64)
    x[::2] += 2
    y = (x.sum(1) > 0).long()
    return Splits(*(TensorSplit(x[i::3], y[i::3]) for i in range(3)), classes=2)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    guide = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    return target.double(), guide.double()


def trained(rank: int, folder: str) -> Any:
    """Records and weights of a network without what sees a process's samples alone."""
    (target, guide), data = networks(), splits()
    setting = next(iter(find_experiments()["deep-fcn"].scales.values()))
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(
        setting,
        target,
        (optimizer, None),
        data,
        seed=3,
        epochs=4,
        batch_size=12,
        objective=Guided(setting, Guidance(target, guide, release_at=8, timed=True)),
        clip=1.0,
        score_test=True,
    )
    trainer.run(Silent(), Checkpoint(Path(folder) / f"{rank}.pt", {}, seconds=1e9))
    return trainer.records, [p.detach() for p in target.parameters()]


def test_a_job_is_that_of_one_process(worlds, tmp_path):
    alone, weights = trained(0, str(tmp_path))
    for records, others in worlds[3].run(trained, str(tmp_path)):
        for own, expected in zip(records, alone, strict=True):
            for key, value in expected.items():
                if key not in ("seconds", "times"):
                    assert own[key] == pytest.approx(value, rel=1e-7), key
        for own, expected in zip(others, weights, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-10)


def aligned(rank: int, noise: bool) -> Any:
    target, guide = networks()
    guidance = Guidance(target, guide)
    record = align(guidance, splits().train, steps=5, lr=0.01, batch_size=12, seed=1, noise=noise)
    return record, [p.detach() for p in target.parameters()]


@pytest.mark.parametrize("noise", [False, True])
def test_alignment_before_training_is_that_of_one_process(noise, worlds):
    record, weights = aligned(0, noise)
    assert record["last_loss"] < record["first_loss"]
    for own, others in worlds[2].run(aligned, noise):
        for key in ("first_loss", "last_loss"):
            assert own[key] == pytest.approx(record[key], rel=1e-9)
        for p, q in zip(others, weights, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def told(rank: int) -> Any:
    processes = Processes()
    return (
        processes.from_first(lambda: rank + 10),
        processes.gathered(rank),
        processes.mean({"a": float(rank)}),
        processes.share.of(12),
    )


def test_what_processes_tell_each_other(worlds):
    results = worlds[3].run(told)
    assert [r[:3] for r in results] == [(10, [0, 1, 2], {"a": 1.0})] * 3
    assert [r[3] for r in results] == [slice(0, 4), slice(4, 8), slice(8, 12)]


SMALL = ["train", "deep-fcn", "--quick", "--epochs", "3", "--arms", "none", "untrained"]


@pytest.mark.slow
def test_a_run_with_torchrun_stops_and_goes_on(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run([*TORCHRUN, *SMALL, "--out", whole], check=True, timeout=300)
    command = [*TORCHRUN, *SMALL, "--checkpoint-every", "0", "--out", stopped]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 200
    while not any(stopped.glob("**/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    resume = ["train", "deep-fcn", "--resume", stopped]
    subprocess.run([*TORCHRUN, *resume], check=True, timeout=300)
    first, second = (json.loads((f / "results.json").read_text()) for f in (whole, stopped))
    assert [run["processes"] for run in first["runs"]] == [2, 2]
    for own, expected in zip(second["runs"], first["runs"], strict=True):
        own.pop("seconds"), expected.pop("seconds")
        assert own == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "63"], "--batch-size: a batch of 63 is not shared evenly by 2 processes"),
        (["--workers", "2"], "--workers: torchrun's processes do one job after another together"),
    ],
)
def test_bad_options_end_all_processes(options, message, tmp_path):
    done = subprocess.run(
        [*TORCHRUN, *SMALL, *options, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and message in done.stderr
