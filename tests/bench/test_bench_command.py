"""``pyguide bench`` as its users run it."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import pyguide
from pyguide.bench import candidates, command
from pyguide.bench.arithmetic import ARITHMETIC
from pyguide.bench.candidates import CANDIDATES
from pyguide.bench.plot import speeds
from pyguide.bench.result import spread
from pyguide.bench.workloads import WORKLOADS
from pyguide.cli import main

QUICK = ["bench", "--quick", "--candidates", "pyguide", "eager", "official", "--workloads"]


def read(path):
    return json.loads(path.read_text())


pytestmark = pytest.mark.xdist_group("bench command")  # so that one run serves all


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The file of a quick run of two workloads, one of them at two sizes."""
    out = tmp_path_factory.mktemp("bench") / "out.json"
    assert main([*QUICK, "gram", "small-pair", "--n", "16", "32", "--out", str(out)]) == 0
    return out


def test_the_file_says_what_ran_where(finished):
    result = read(finished)
    assert result["format"] == 1
    assert result["quick"] is True
    assert result["finished"] is True
    assert result["versions"]["pyguide"] == pyguide.__version__
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert {"cpu", "cores", "instruction_set", "parallel"} <= set(result["machine"])
    assert {"commit", "dirty", "digest"} == set(result["source"])
    assert result["options"]["candidates"] == ["pyguide", "eager", "official"]
    assert result["date"].startswith("20")
    found = [(e["workload"], e["n"]) for e in result["workloads"]]
    assert found == [("gram", 16), ("gram", 32), ("small-pair", 16)]


def test_rows_hold_samples_and_what_follows_from_them(finished):
    result = read(finished)
    ceilings = result["ceilings"]
    # Before the first workload, and after each.
    assert {len(samples) for samples in ceilings["samples"].values()} == {4}
    for entry in result["workloads"]:
        names = [row["candidate"] for row in entry["rows"]]
        assert names == ["pyguide", "eager", "official"][: len(names)]
        assert entry["unit"] == "fma"
        assert entry["ceiling_flops"] >= max(ceilings["samples"]["sgemm"])
        least = max(
            entry["least_flop"] / entry["ceiling_flops"],
            entry["least_bytes"] / ceilings["bandwidth"],
        )
        assert entry["ceiling_seconds"] == pytest.approx(least)
        ours = entry["rows"][0]["samples"]
        for row in entry["rows"]:
            assert row["status"] == "timed"
            assert row["wrong"] is False
            assert row["error"]["value"] < 1e-5
            assert (row["error"]["gradient"] is None) == (entry["workload"] == "gram")
            assert len(row["samples"]) >= 3
            assert row["first_call_seconds"] > 0
            assert row["memory"]["peak"] >= 0
            assert row["seconds"] == spread(row["samples"])
            assert row["of_ceiling"] == pytest.approx(least / row["seconds"]["median"])
            ratios = [s / p for s, p in zip(row["samples"], ours, strict=True)]
            assert row["ratio_to_pyguide"] == pytest.approx(spread(ratios))


def test_spread():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0, "max": 5.0,
    }  # fmt: skip
    assert set(spread([2.0]).values()) == {2.0}


def test_the_table(capsys):
    assert main([*QUICK, "small-pair", "bf16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("small-pair, n = 16: loss of one small pair, + gradient")
    assert "bf16, n = 32" in out
    assert "quick: not a result" in out
    head, *rows = out.splitlines()[2:6]
    for word in ("median", "quartiles", "/ pyguide", "peak memory", "of ceiling", "error"):
        assert word in head
    assert [row.split()[0] for row in rows] == ["pyguide", "eager", "official"]
    assert "1.00 - 1.00" in rows[0]
    assert all("MiB" in row and " % " in row for row in rows)


def interrupt_after_first_workload(monkeypatch):
    def stop(result, entry):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "table", stop)


RESUMED = [*QUICK, "small-pair", "gram", "--rounds", "4"]


@pytest.fixture
def interrupted(tmp_path):
    out = tmp_path / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after_first_workload(patch)
        assert main([*RESUMED, "--out", str(out)]) == 130
    return out


def test_an_interrupted_run_goes_on(interrupted, capsys):
    before = read(interrupted)
    assert before["finished"] is False
    assert [e["workload"] for e in before["workloads"]] == ["gram"]
    assert main([*RESUMED, "--out", str(interrupted), "--resume"]) == 0
    after = read(interrupted)
    assert after["finished"] is True
    assert [e["workload"] for e in after["workloads"]] == ["gram", "small-pair"]
    for old, new in zip(before["workloads"][0]["rows"], after["workloads"][0]["rows"], strict=True):
        assert old["samples"] == new["samples"]
    # Both starts measured the ceilings, and so did each workload.
    assert len(after["ceilings"]["samples"]["copy"]) == 4
    assert [path.name for path in interrupted.parent.iterdir()] == ["out.json"]
    # A finished run has nothing left to do.
    capsys.readouterr()
    assert main([*RESUMED, "--out", str(interrupted), "--resume"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "part", "value", "message"),
    [
        (["--seed", "1"], None, None, "options seed was 0 and is 1"),
        (["--rounds", "5"], None, None, "options rounds was 4 and is 5"),
        ([], ("versions", "torch"), "1.0", "versions torch was 1.0 and is"),
        ([], ("machine", "cpu"), "another", "machine cpu was another and is"),
        ([], ("source", "commit"), "0" * 40, "source commit was 0000"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(options, part, value, message, interrupted, capsys):
    if part is not None:
        result = read(interrupted)
        result[part[0]][part[1]] = value
        interrupted.write_text(json.dumps(result))
    before = interrupted.read_text()
    capsys.readouterr()
    assert main([*RESUMED, "--out", str(interrupted), "--resume", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert interrupted.read_text() == before


def test_a_peer_that_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name == "cka" else find(name, *rest)

    monkeypatch.setattr(candidates.importlib.util, "find_spec", find_spec)
    assert main(["bench", "--list"]) == 0
    assert "pip install pytorch-cka" in capsys.readouterr().out
    out = tmp_path / "out.json"
    names = ["--candidates", "pyguide", "pytorch-cka"]
    assert main(["bench", "--quick", "--workloads", "matrix", *names, "--out", str(out)]) == 0
    assert "pytorch-cka: missing: not installed: pip install pytorch-cka" in capsys.readouterr().out
    ours, peer = read(out)["workloads"][0]["rows"]
    assert ours["status"] == "timed"
    assert peer["status"] == "missing"


def test_a_candidate_that_fails_or_is_wrong_is_marked(monkeypatch, tmp_path, capsys):
    def fails(x):
        raise RuntimeError("no such kernel\nat line 3")

    monkeypatch.setattr(candidates.formulas, "gram", fails)
    monkeypatch.setattr(candidates.pyguide, "gram", lambda xs: [2 * (x @ x.T) for x in xs])
    out = tmp_path / "out.json"
    assert main([*QUICK, "gram", "--out", str(out)]) == 0
    ours, eager = read(out)["workloads"][0]["rows"]
    assert ours["wrong"] is True
    assert eager["status"] == "failed"
    assert eager["reason"] == "RuntimeError: no such kernel"
    text = capsys.readouterr().out
    assert "! pyguide: further from the exact result than allowed" in text
    assert "eager: failed: RuntimeError: no such kernel" in text


def test_the_list_names_everything(capsys):
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines]
    expected = [w.name for w in WORKLOADS], list(ARITHMETIC), [c.name for c in CANDIDATES]
    assert named == [
        *("workloads", *expected[0]),
        *("arithmetic", *expected[1]),
        *("candidates", *expected[2]),
    ]


def test_a_plot_from_a_file(finished, tmp_path, capsys):
    png = tmp_path / "bench.png"
    assert main(["bench", "--plot-from", str(finished), "--plot", str(png)]) == 0
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    assert 900 <= int.from_bytes(header[16:20], "big") <= 1100


def test_bars_are_speeds_relative_to_eager(finished):
    result = read(finished)
    bars = speeds(result)
    assert list(bars) == ["gram\nn = 16", "small-pair\nn = 16"]
    (entry,) = (e for e in result["workloads"] if e["workload"] == "small-pair")
    samples = {row["candidate"]: row["samples"] for row in entry["rows"]}
    ratios = [e / p for e, p in zip(samples["eager"], samples["pyguide"], strict=True)]
    low, median, high = bars["small-pair\nn = 16"]["pyguide"]
    assert (low, high) == pytest.approx((min(ratios), max(ratios)))
    assert low <= median <= high
    assert "eager" not in bars["small-pair\nn = 16"]


def test_threads_are_set_for_the_run_alone(tmp_path, threads):
    threads(2)
    out = tmp_path / "out.json"
    assert main([*QUICK, "gram", "--threads", "1", "--out", str(out)]) == 0
    assert read(out)["machine"]["threads"] == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workloads", "gramm"], "--workloads: no 'gramm'; there are gram-large"),
        (["--candidates", "eagre"], "--candidates: no 'eagre'; there are pyguide"),
        (["--n", "256", "3"], "--n: expected at least 4, got 3"),
        (["--rounds", "2"], "--rounds: expected at least 3, got 2"),
        (["--budget", "-1"], "--budget: expected at least 0, got -1.0"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--resume"], "--resume needs --out"),
        (["--plot", "x.png", "--candidates", "pyguide"], "--plot draws speeds relative to eager"),
        (["--plot-from", "x.json"], "--plot-from needs --plot"),
        (["--plot-from", "missing.json", "--plot", "x.png"], "missing.json: cannot read it"),
        (["--plot-from", "text.json", "--plot", "x.png"], "text.json: not JSON"),
        (["--plot-from", "other.json", "--plot", "x.png"], "other.json: not a result"),
        (["--plot-from", "empty.json", "--plot", "x.png"], "nothing to draw"),
        (["--out", "missing/x.json"], "missing is not a folder"),
        (["--plot", "missing/x.png"], "missing is not a folder"),
        (["--out", "other.json"], "other.json exists: add --resume or choose another --out"),
        (["--out", "missing.json", "--resume"], "missing.json: cannot read it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("speed")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "empty.json").write_text('{"format": 1, "workloads": []}')
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pyguide: error: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_a_missing_extra_is_named(package, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == package else find(name, *rest),
    )
    assert main(["bench", "--quick"]) == 2
    assert f"needs {package}: run pip install 'pyguide[bench]'" in capsys.readouterr().err
