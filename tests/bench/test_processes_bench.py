"""bench/processes.py: what is counted is what is computed, and an interrupted run goes on."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "processes_cpu.json"


@pytest.fixture
def bench(monkeypatch):
    """The script, importable by the processes that it starts."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("processes")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_counted_is_computed(bench, processes):
    """One pair by Gram matrices, one through feature space."""
    shapes = bench.Shapes([(64, 4), (4,)], [(512,), (8,)], [(0, 0), (1, 1)])
    expected = bench.computed(shapes, 32)[str(processes)]
    assert expected["pairs_in_feature_space"] == 1
    (found,) = bench.counted(shapes, processes, [32]).values()
    assert len(found) == processes
    for sent in found:
        for name in bench.COLLECTIVES:
            # A message is rounded down to whole bytes a process.
            assert sent[name] == pytest.approx(expected["pyguide"][name], abs=16)


def test_the_result_has_what_was_counted_equal_to_what_was_computed(bench):
    result = json.loads(RESULTS.read_text())
    assert result["finished"] and not result["quick"] and not result["source"]["dirty"]
    assert tuple(result["cases"]) == bench.CASES
    for entry in result["cases"].values():
        features = {math.prod(shape) for shape in entry["targets"] + entry["guides"]}
        for w, n in ((w, n) for w in ("1", "2", "4") for n in ("64", "256")):
            assert not any(d % int(w) for d in features)
            assert len(entry["counted"][w][n]) == int(w)
            for sent in entry["counted"][w][n]:
                expected = entry["computed"][n][w]["pyguide"]
                assert sent == {
                    name: pytest.approx(expected[name], abs=16) for name in bench.COLLECTIVES
                }


def test_the_result_is_what_is_computed_now(bench):
    entry = json.loads(RESULTS.read_text())["cases"]["wide-fcn"]
    shapes = bench.shapes_of("wide-fcn")
    assert [list(shape) for shape in shapes.targets] == entry["targets"]
    assert bench.computed(shapes, 64) == entry["computed"]["64"]


def test_gram_matrices_of_three_layers_by_hand(bench):
    """Two layers of a target, one of a guide; W = 4, N = 128, float32."""
    shapes = bench.Shapes([(64,), (128,)], [(256,)], [(0, 0), (1, 0)])
    found = bench.computed(shapes, 32)["4"]["sample space"]
    assert found["all_to_all"] == 32 * 4 * (64 + 128 + 256 + 64 + 128) * 3 // 4
    assert found["all_reduce"] == 2 * 3 * 3 * 128 * 128 * 4 // 4
    assert found["all_gather"] == 0
    assert found["sent"] == found["all_to_all"] + found["all_reduce"]
    forward, backward = 128 * 128 * (64 + 128 + 256) // 8, 128 * 128 * (64 + 128) // 4
    assert found["multiply_adds"] == forward + backward
    assert found["held"] == 128 * 4 * (64 + 128 + 256) // 4 + 2 * 3 * 128 * 128 * 4


@pytest.mark.slow
def test_an_interrupted_run_goes_on(bench, tmp_path, capsys, monkeypatch):
    out = tmp_path / "processes.json"
    arguments = ["--quick", "--case", "wide-fcn", "--out", str(out)]
    counted, calls = bench.counted, []

    def interrupted(shapes, processes, samples):
        calls.append(processes)
        if calls == [1, 2]:
            raise KeyboardInterrupt
        return counted(shapes, processes, samples)

    monkeypatch.setattr(bench, "counted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(arguments)
    assert not json.loads(out.read_text())["finished"]
    bench.main([*arguments, "--resume"])
    result = json.loads(out.read_text())
    assert calls == [1, 2, 2] and result["finished"] and result["quick"]
    assert list(result["cases"]["wide-fcn"]["counted"]) == ["1", "2"]
    assert "| 1024 |" in capsys.readouterr().out
