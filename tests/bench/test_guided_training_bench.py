"""bench/guided_training.py: what it compares with what, and continuing an interrupted run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "guided_training.py"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("guided_training_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parts(bench):
    """The package with the script's parts."""
    return importlib.import_module("training_steps")


def test_the_settings_span_what_the_benchmark_is_about(bench):
    found = bench.settings(quick=False)
    assert len({setting.name for setting in found}) == len(found)
    samples = [s.n for s in found if s.group == "samples" and s.networks == "deep-fcn"]
    assert (min(samples), max(samples)) == (64, 8192)
    pairs = [s.pairs for s in found if s.group == "pairs"]
    assert (min(pairs), max(pairs)) == (1, 100)
    for setting in found:
        names = [candidate.name for candidate in setting.candidates]
        assert len(set(names)) == len(names)
        for candidate in setting.candidates:
            base = setting.candidates[names.index(candidate.base)]
            assert base.step == "unguided"
            assert (base.processes, base.threads) == (candidate.processes, candidate.threads)


def test_pairs_are_spread_over_all_layers(parts):
    assert parts.settings.spread_pairs(1) == [("99.0", "99.0")]
    assert [int(t.split(".")[0]) for t, _ in parts.settings.spread_pairs(4)] == [0, 33, 66, 99]
    assert len(set(parts.settings.spread_pairs(100))) == 100
    for networks in ("two-fcns",):
        case = parts.settings.NETWORKS[networks]
        assert {f"{i}.0" for i in range(100)} < {name for name, _ in case.guide().named_modules()}


def entry(parts, group="samples", n=64, pairs=None):
    rows = [
        ("unguided", [1.0, 2.0, 4.0], 10 << 20),
        ("guided", [3.0, 3.0, 8.0], 25 << 20),
    ]
    made = {
        "group": group,
        "networks": "deep-fcn",
        "n": n,
        "pairs": pairs,
        "rows": [
            {
                "candidate": name,
                "compared_with": "unguided",
                "memory": {"peak": peak, "retained": 0},
                "samples": samples,
            }
            for name, samples, peak in rows
        ],
    }
    parts.measurement.summarize(made)
    return made


def test_ratios_are_taken_within_the_rounds(bench, parts):
    unguided, guided = entry(parts)["rows"]
    assert unguided["time_ratio"]["max"] == 1
    assert guided["time_ratio"]["median"] == 2 and guided["time_ratio"]["max"] == 3
    assert guided["memory_ratio"] == 2.5
    shown = bench.table(entry(parts), "name")
    assert "| guided | 3000 | 2.00 (1.75–2.50) | 25 | 2.50 |" in shown


def test_an_interrupted_run_is_continued_and_drawn(bench, parts, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(setting, *options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(setting.name)
        return entry(parts, setting.group, setting.n, setting.pairs)

    monkeypatch.setattr(bench, "measure", measured)
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["--quick", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        bench.main(arguments)
    assert list(json.loads(out.read_text())["settings"]) == asked
    before, asked = asked, []
    monkeypatch.setattr(
        bench, "measure", lambda s, *o: asked.append(s.name) or entry(parts, s.group, s.n, s.pairs)
    )
    bench.main([*arguments, "--resume", "--plot", str(png)])
    everything = [setting.name for setting in bench.settings(quick=True)]
    assert before + asked == everything
    result = json.loads(out.read_text())
    assert result["finished"] and list(result["settings"]) == everything
    curves = parts.plot.curves(result, "pairs", "pairs", "time_ratio")
    assert [x for x, _ in curves["deep-fcn, guided"]] == [1, 4]
    drawn = png.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    bench.main(["--plot-from", str(out), "--plot", str(tmp_path / "again.png")])
    assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        bench.main([*arguments, "--resume", "--rounds", "4"])
    assert "options rounds was 9 and is 4" in capsys.readouterr().err


def test_options_that_need_another_are_refused(bench, tmp_path, capsys):
    for given, needed in (("--resume",), "--out"), (("--plot-from", str(tmp_path)), "--plot"):
        with pytest.raises(SystemExit):
            bench.main([*given, "--quick"])
        assert f"{given[0]} needs {needed}" in capsys.readouterr().err


def test_a_candidate_that_dies_is_named(bench, parts, monkeypatch):
    class Workers:
        def __init__(self, setting, candidate, *options):
            self.dies = candidate.step == "guided"

        def memory(self):
            if self.dies:
                raise EOFError
            return {"peak": 1 << 20, "retained": 0}

        def step(self):
            return 0.5

        def close(self):
            pass

    monkeypatch.setattr(parts.workers, "Workers", Workers)
    (setting, *_) = bench.settings(quick=True)
    found = bench.measure(setting, threads=1, rounds=9, budget=2.0, chunk=16)
    unguided, guided = found["rows"]
    assert unguided["samples"] == [0.5] * 4
    assert guided["failed"] == "the process ended early" and "time_ratio" not in guided
    assert "the process ended early" in bench.table(found, setting.name)


@pytest.mark.slow
def test_steps_in_one_and_two_processes_are_measured(tmp_path):
    out = tmp_path / "out.json"
    options = [
        "--quick",
        "--only",
        "processes",
        "--rounds",
        "4",
        "--budget",
        "0",
        "--out",
        str(out),
    ]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert not result["finished"]
    (found,) = result["settings"].values()
    assert [row["processes"] for row in found["rows"]] == [1, 1, 1, 1, 2, 2, 2]
    for row in found["rows"]:
        assert len(row["samples"]) == 3 and min(row["samples"]) > 0
        assert row["memory"]["peak"] > 0 and row["time_ratio"]["median"] > 0
