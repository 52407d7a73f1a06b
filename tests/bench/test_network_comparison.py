"""bench/compare_networks.py: what it calls wrong, and continuing an interrupted run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "compare_networks.py"


@pytest.fixture
def bench(monkeypatch):
    """The script, with random images for MNIST's and without processes of their own."""
    spec = importlib.util.spec_from_file_location("compare_networks_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    images, labels = torch.randn(64, 1, 28, 28), torch.zeros(64)
    monkeypatch.setattr(module, "mnist5000", lambda: {"train": (images, labels)})
    memory = {"peak": 1 << 20, "retained": 0}
    monkeypatch.setattr(module, "in_own_process", lambda *arguments, threads: memory)
    return module


def test_values_are_checked_under_their_names(bench) -> None:
    problem = bench.prepare(bench.CASES["in-place"], quick=True)
    expected = bench.exact(problem)
    found = bench._pyguide(problem)
    right = bench.errors(found, problem, expected)
    assert right["names_match"] and right["by_name"] < 1e-5
    # Two names that change places, as where modules are registered in another order.
    rows = [found.rows[1], found.rows[0], *found.rows[2:]]
    wrong = bench.errors(found._replace(rows=rows), problem, expected)
    assert not wrong["names_match"]
    assert wrong["by_place"] == right["by_place"]


def test_the_work_beyond_the_forward_passes_is_that_of_the_same_round(bench) -> None:
    rows = [
        {"candidate": "forward", "samples": [1.0, 2.0, 9.0]},
        {"candidate": "pyguide", "samples": [1.5, 2.5, 9.5]},
        {"candidate": "torch-cka", "samples": [7.0]},
    ]
    bench._summarize(rows)
    assert rows[1]["beyond"]["median"] == 0.5
    assert rows[2]["ratio"] == {"seconds": 7.0 / 2.5, "beyond": 12.0}
    assert rows[2]["aim_reached"]


def test_an_interrupted_run_is_continued(bench, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "result.json"
    arguments = ["--quick", "--case", "in-place", "--rounds", "2", "--out", str(out)]
    timed = bench._timed

    def interrupted(row, problem, r):
        if r == 1:
            raise KeyboardInterrupt
        return timed(row, problem, r)

    monkeypatch.setattr(bench, "_timed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(arguments)
    kept = json.loads(out.read_text())["cases"]["in-place"]["rows"]
    monkeypatch.setattr(bench, "_timed", timed)
    bench.main([*arguments, "--resume"])
    result = json.loads(out.read_text())
    rows = result["cases"]["in-place"]["rows"]
    assert result["finished"]
    assert [row["candidate"] for row in rows] == ["forward", "pyguide", "pytorch-cka"]
    for row, before in zip(rows, kept, strict=True):
        assert len(row["samples"]) == 2
        assert row["samples"][:1] == before["samples"]
    # A hook sees what a ReLU in place made of the BatchNorm's output.
    assert rows[1]["error"]["by_name"] < 1e-5 < 1e-3 < rows[2]["error"]["by_name"]
    assert "| pytorch-cka |" in capsys.readouterr().out
