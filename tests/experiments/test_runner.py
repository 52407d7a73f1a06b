"""Jobs as processes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import torch

from pyguide.experiments import runner


@dataclass(frozen=True)
class ScriptedJob:
    """Reports its epochs, then ends as told."""

    name: str
    end: str = "return"
    epochs: int = 2

    def run(self, data, report):
        for epoch in range(self.epochs):
            report({"epoch": epoch, "threads": torch.get_num_threads()})
        if self.end == "raise":
            raise ValueError("the job's own words")
        if self.end == "die":
            os._exit(3)
        return {"rows": len(data.y_train)}


def test_a_crash_is_named_and_takes_nothing_with_it(tiny, tmp_path, capsys):
    tiny.save(tmp_path / "data.npz")
    tasks = [
        runner.Task("dies", ScriptedJob("arm a seed 1", "die")),
        runner.Task("raises", ScriptedJob("arm b seed 2", "raise"), needs="works"),
        runner.Task("needs dead", ScriptedJob("arm c seed 3"), needs="dies"),
        runner.Task("works", ScriptedJob("arm d seed 4")),
    ]
    epochs: Counter[str] = Counter()
    results: dict[str, dict] = {}
    failed = runner.run_tasks(
        tasks,
        tmp_path / "data.npz",
        workers=2,
        threads=1,
        on_epoch=lambda task, record: epochs.update([f"{task.key} {record['threads']}"]),
        on_result=lambda task, result: results.update({task.key: result}),
        progress=runner.Progress(tasks),
    )
    assert results == {"works": {"rows": 700}}
    assert set(failed) == {"dies", "raises", "needs dead"}
    assert "exit code 3" in failed["dies"]
    assert "ValueError: the job's own words" in failed["raises"]
    assert "needs dies, which failed" in failed["needs dead"]
    assert epochs == {f"{key} 1": 2 for key in ("dies", "raises", "works")}
    messages = capsys.readouterr().err
    assert "FAILED: arm a seed 1: " in messages and "FAILED: arm b seed 2: " in messages
