"""bench/large_batch.py: its rows, and continuing a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "large_batch.py"
MIB = 1 << 20


@pytest.fixture
def bench(monkeypatch):
    """The script, with numbers in place of processes of its own."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("large_batch_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.asked = []

    def in_own_process(function, networks, step, n, chunk, *, threads):
        module.asked.append((step, n))
        peak = {"forward": 20, "accumulated": 30, "large": n // 2, "whole": 3 * n}[step] * MIB
        return {"peak": peak, "retained": 0}

    monkeypatch.setattr(module, "in_own_process", in_own_process)
    return module


def test_a_run_is_continued_with_larger_batches(bench, tmp_path, monkeypatch):
    out, markdown = tmp_path / "out.json", tmp_path / "out.md"
    arguments = ["--networks", "deep-fcn", "--quick", "--out", str(out)]
    bench.main([*arguments, "--n", "64"])
    assert bench.asked == [("forward", 32), ("accumulated", 64), ("large", 64), ("whole", 64)]
    bench.asked.clear()
    monkeypatch.setattr(bench, "available_bytes", lambda: 900 * MIB)
    bench.main([*arguments, "--n", "64", "128", "--resume", "--markdown", str(markdown)])
    # In one piece 64 samples take 192 MiB, and 128 at most four times as much.
    assert bench.asked == [("large", 128)]
    entry = json.loads(out.read_text())["cases"]["deep-fcn"]
    first, second = entry["rows"]
    assert (first["n"], second["n"]) == (64, 128)
    kept = first["activations"] // 2
    assert entry["chunk"] == {"forward": 20 * MIB - kept, "step": 30 * MIB}
    assert first["formula"] == max(
        first["activations"] + 20 * MIB - kept, first["distances"], first["gradients"] + 30 * MIB
    )
    assert first["measured_to_formula"] == 32 * MIB / first["formula"]
    assert first["as_stated"] == (abs(first["measured_to_formula"] - 1) <= 0.15)
    assert second["whole_batch"] == "skipped: may not fit"
    lines = markdown.read_text().splitlines()
    assert lines[2].startswith("| deep-fcn | 64 | 192 | 32 |")
    assert lines[3].startswith("| deep-fcn | 128 | – | 64 |")


def test_the_table_of_the_documentation_is_that_of_the_results(bench, tmp_path):
    root, markdown = SCRIPT.parents[1], tmp_path / "table.md"
    results = root / "bench" / "results" / "large_batch_cpu.json"
    bench.main(["--table-from", str(results), "--markdown", str(markdown)])
    shown = root / "docs" / "figures" / "large_batch.md"
    assert shown.read_text(encoding="utf-8") == markdown.read_text(encoding="utf-8")
    for entry in json.loads(results.read_text())["cases"].values():
        assert all(row["as_stated"] for row in entry["rows"])


@pytest.mark.slow
def test_peaks_are_measured(bench, monkeypatch):
    found = bench.peak("deep-fcn", "large", 64, 32)
    assert found["peak"] > 0
    assert bench.peak("deep-fcn", "whole", 64, 32)["peak"] > 0
