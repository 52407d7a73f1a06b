"""Jobs as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pyguide.experiments.harness import processes
from pyguide.experiments.harness.progress import Progress, Task


@dataclass(frozen=True)
class ScriptedJob:
    """Reports its epochs, then ends as told."""

    name: str
    end: str = "return"
    epochs: int = 2

    @property
    def identity(self) -> dict[str, Any]:
        return {}

    def run(self, report):
        for epoch in range(self.epochs):
            report.epoch({"epoch": epoch, "threads": torch.get_num_threads()})
        if self.end == "raise":
            raise ValueError("the job's own words")
        if self.end == "die":
            os._exit(3)
        if self.end == "sleep":
            Path(self.name).write_text(str(os.getpid()))
            time.sleep(600)
        report.note("a note")
        return {"pid": os.getpid()}


def run_scripted(tasks, **callbacks):
    return processes.run_tasks(tasks, workers=2, threads=1, progress=Progress(tasks), **callbacks)


def test_a_crash_is_named_and_takes_nothing_with_it(capsys):
    tasks = [
        Task("dies", ScriptedJob("arm a seed 1", "die")),
        Task("raises", ScriptedJob("arm b seed 2", "raise"), needs="works"),
        Task("needs dead", ScriptedJob("arm c seed 3"), needs="dies"),
        Task("works", ScriptedJob("arm d seed 4")),
    ]
    epochs: Counter[str] = Counter()
    results: dict[str, dict] = {}
    failed = run_scripted(
        tasks,
        on_epoch=lambda task, record: epochs.update([f"{task.key} {record['threads']}"]),
        on_result=lambda task, result: results.update({task.key: result}),
    )
    assert set(results) == {"works"} and results["works"]["pid"] != os.getpid()
    assert set(failed) == {"dies", "raises", "needs dead"}
    assert "exit code 3" in failed["dies"]
    assert "ValueError: the job's own words" in failed["raises"]
    assert "needs dies, which failed" in failed["needs dead"]
    assert epochs == {f"{key} 1": 2 for key in ("dies", "raises", "works")}
    messages = capsys.readouterr().err
    assert "FAILED: arm a seed 1: " in messages and "FAILED: arm b seed 2: " in messages
    assert "arm d seed 4: a note" in messages


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_parent_takes_its_jobs_with_it(tmp_path):
    pid_file = tmp_path / "pid"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_job_processes import ScriptedJob, Task, run_scripted\n"
        "if __name__ == '__main__':\n"
        "    nothing = lambda *_: None\n"
        "    tasks = [Task('sleeps', ScriptedJob(sys.argv[2], 'sleep'))]\n"
        "    run_scripted(tasks, on_epoch=nothing, on_result=nothing)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    here = Path(__file__).parent
    parent = subprocess.Popen([sys.executable, str(script), str(here), str(pid_file)])
    try:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    job = int(pid_file.read_text())
    deadline = time.monotonic() + 20
    while exists(job):
        assert time.monotonic() < deadline, "the job lives on"
        time.sleep(0.05)
