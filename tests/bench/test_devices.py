"""Benchmarks of a device with several states of its caches, arithmetics and aims; and of CUDA."""

from __future__ import annotations

import json

import pytest
import torch

from pyguide import cuda_library
from pyguide.bench import case as case_module
from pyguide.bench.aims import AIMS, aims_table, reached
from pyguide.bench.arithmetic import ARITHMETIC
from pyguide.bench.candidates import CANDIDATES, candidate, candidates_of
from pyguide.bench.check import errors, exact
from pyguide.bench.cuda import CUDA, unit_work
from pyguide.bench.device import CPU, DEVICES, UnitWork, device_named
from pyguide.bench.options import Options
from pyguide.bench.plot import speeds
from pyguide.bench.run import run
from pyguide.bench.workloads import WORKLOADS, Work, workload
from pyguide.cli import main


class Pretended(CPU):
    """Calls take 2 s with warm caches and 3 s with cold ones, and return after 10 us."""

    name = "pretended"
    arithmetic = ("highest", "bf16")

    def __init__(self, *, quick: bool):
        super().__init__(quick=quick)
        self.caches = {
            "warm": lambda run, problem, calls: 2.0 * calls,
            "cold": lambda run, problem, calls: 3.0 * calls,
        }
        self.host = lambda run, problem, calls: 1e-5 * calls

    def probes(self):
        return {"tf32": lambda: 1e12, "bf16": lambda: 4e12, "copy": lambda: 1e9}

    def unit_work(self, work: Work, arithmetic: str) -> UnitWork:
        return unit_work(work, arithmetic)

    def peak_memory(self, load, n, seed, name):
        return {"peak": 5, "retained": 1}

    def describe(self):
        return {"gpu": "a pretended one", "driver": "1.2"}


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setitem(DEVICES, "pretended", Pretended)
    monkeypatch.setattr(case_module, "_LONGEST_HOST_CALL", 2.5)


PRETENDED = [
    *("bench", "--quick", "--device", "pretended", "--budget", "30", "--n", "64"),
    *("--candidates", "pyguide", "eager", "--workloads"),
]


def test_a_workload_is_timed_in_every_state_and_arithmetic(pretended, tmp_path, capsys):
    out = tmp_path / "out.json"
    loads = ["gram-large", "small-pairs"]
    assert main([*PRETENDED, *loads, "--out", str(out), "--commit", "abc"]) == 0
    result = json.loads(out.read_text())
    assert result["source"]["commit"] == "abc"
    assert result["machine"]["gpu"] == "a pretended one"
    assert result["options"]["arithmetic"] == ["highest", "bf16"]
    found = [(e["workload"], e["arithmetic"], e["cache"]) for e in result["workloads"]]
    assert found == [
        (load, arithmetic, cache)
        for load in loads
        for arithmetic in ("highest", "bf16")
        for cache in ("warm", "cold")
    ]
    for entry in result["workloads"]:
        seconds = {"warm": 2, "cold": 3}[entry["cache"]]
        dtype = {"highest": "float32", "bf16": "bfloat16"}[entry["arithmetic"]]
        unit, rate = {"highest": ("tf32", 1e12), "bf16": ("bf16", 4e12)}[entry["arithmetic"]]
        assert (entry["dtype"], entry["unit"], entry["ceiling_flops"]) == (dtype, unit, rate)
        for row in entry["rows"]:
            assert set(row["samples"]) == {seconds}
            assert row["host_seconds"]["median"] == pytest.approx(1e-5)
            assert row["memory"]["peak"] == 5
    text = capsys.readouterr().out
    assert "gram-large, n = 64, bf16, cold L2: centred Gram matrices of 8 layers" in text
    assert "10 us" in text
    assert "50 pairs, host time" in text
    # One bar chart a workload and arithmetic, of the cold caches.
    assert list(speeds(result)) == [
        f"{load}\nn = {n}{how}"
        for load, n in (("gram-large", 64), ("small-pairs", 16))
        for how in ("", ", bf16")
    ]


def test_no_workload_starts_that_might_end_too_late(pretended, tmp_path, capsys):
    out = tmp_path / "out.json"
    loads = ["small-pair", "small-pairs"]
    assert main([*PRETENDED, *loads, "--out", str(out), "--seconds", "0"]) == 0
    assert "out of time: --resume runs the rest" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert not result["finished"]
    assert [e["workload"] for e in result["workloads"]] == []
    assert main([*PRETENDED, *loads, "--out", str(out), "--resume"]) == 0
    result = json.loads(out.read_text())
    assert result["finished"]
    assert len(result["workloads"]) == 8


def entry(load: str, n: int, arithmetic: str, cache: str, **candidates: float) -> dict:
    """An entry of 3 GB of input and 4 GB in all whose instructions are 600 GFLOP."""
    ours = candidates["pyguide"]
    rows = [
        {
            "candidate": name.replace("_", "-"),
            "status": "timed",
            "wrong": False,
            "seconds": {"median": seconds},
            "ratio_to_pyguide": {"median": seconds / ours},
            "host_seconds": {"median": seconds / 2},
        }
        for name, seconds in candidates.items()
    ]
    where = {"workload": load, "n": n, "arithmetic": arithmetic, "cache": cache}
    work = {"input_bytes": 3e9, "least_bytes": 4e9, "unit_flop": 6e11, "ceiling_flops": 8e14}
    return {**where, **work, "rows": rows}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # 3 GB in 1.2 ms at 3 TB/s are 83 % of the bandwidth.
        (entry("gram-large", 128, "bf16", "cold", pyguide=1.2e-3), [("%", 83.3, True)]),
        (entry("gram-large", 128, "bf16", "warm", pyguide=1.2e-3), []),
        (entry("gram-large", 64, "highest", "cold", pyguide=1.3e-3), [("%", 76.9, False)]),
        (entry("gram-large", 256, "bf16", "cold", pyguide=1.5e-3), [("%", 66.7, True)]),
        # 600 GFLOP in 1 ms at 800 TFLOP/s are 75 % of the rate.
        (entry("gram-large", 128, "highest", "cold", pyguide=1e-3), [("%", 75.0, True)]),
        (
            entry("gram-large", 1024, "high", "cold", pyguide=1e-3, mm=1.3e-3),
            [("%", 75.0, True), ("x", 1.3, True)],
        ),
        (entry("gram-large", 1024, "medium", "cold", pyguide=1e-3), [("%", 75.0, True)]),
        (entry("apply-large", 256, "bf16", "cold", pyguide=2e-3), [("%", 66.7, False)]),
        (entry("apply-large", 256, "high", "cold", pyguide=2e-3), []),
        (
            entry("conv-fcn", 256, "bf16", "warm", pyguide=1.0, eager=3.5, eager_bf16=2.5),
            [("x", 2.5, False), ("x", None, None), ("x", None, None)],
        ),
        (
            entry("conv-conv", 64, "highest", "cold", pyguide=1.0, eager=3.5, official=9.0),
            [("x", 3.5, True), ("x", None, None), ("x", 9.0, False)],
        ),
        (entry("conv-fcn", 1024, "bf16", "warm", pyguide=1.0, eager=1.4), [("x", 1.4, True)]),
        (entry("conv-fcn", 1024, "high", "warm", pyguide=1.0, eager=1.4), []),
        (
            entry("small-pairs", 64, "highest", "warm", pyguide=1.2e-3, pyguide_graph=8e-5),
            [("us", 600, True), ("us", 40, False)],
        ),
    ],
)
def test_aims_stand_beside_what_was_reached(made, expected):
    result = {"quick": False, "ceilings": {"bandwidth": 3e12}, "workloads": [made]}
    result["aims"] = reached(result)
    assert [(row["unit"], row["met"]) for row in result["aims"]] == [
        (unit, met) for unit, _, met in expected
    ]
    for row, (_, figure, _) in zip(result["aims"], expected, strict=True):
        assert row["reached"] == (None if figure is None else pytest.approx(figure, rel=1e-3))
    lines = aims_table(result).splitlines()[1:]
    assert len(lines) == len(expected)
    for line, (_, _, met) in zip(lines, expected, strict=True):
        assert (" yes " in line, " no " in line) == (met is True, met is False)


def test_every_aim_is_about_some_workload_of_the_gpu_run():
    sizes = (64, 128, 256, 1024, 4096)
    options = Options(device="cuda", n=sizes).on(CUDA(quick=False))
    made = [
        entry(case.load.name, case.n, case.arithmetic.name, cache, pyguide=1.0)
        for case in options.cases()
        for cache in ("warm", "cold")
    ]
    assert all(any(aim.applies(e) for e in made) for aim in AIMS)


def test_a_case_without_enough_memory_is_left_out(pretended, tmp_path, monkeypatch, capsys):
    def run_out(*arguments):
        raise torch.OutOfMemoryError("no memory left\nfor details see below")

    monkeypatch.setattr(case_module, "time_interleaved", run_out)
    out = tmp_path / "out.json"
    assert main([*PRETENDED, "small-pair", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["finished"] and len(result["workloads"]) == 4
    rows = [row for entry in result["workloads"] for row in entry["rows"]]
    assert {(row["status"], row["reason"]) for row in rows} == {("failed", "no memory left")}
    assert "pyguide: failed: no memory left" in capsys.readouterr().out


def test_a_wrong_row_reaches_no_aim():
    made = entry("gram-large", 128, "bf16", "cold", pyguide=1.2e-3)
    made["rows"][0]["wrong"] = True
    (row,) = reached({"ceilings": {"bandwidth": 3e12}, "workloads": [made]})
    assert row["reached"] is None and row["met"] is None


def test_large_layers_share_their_bytes():
    for n, arithmetic in ((64, "highest"), (4096, "bf16")):
        load = workload("gram-large").at(n, ARITHMETIC[arithmetic].dtype)
        assert load.least_work(n).input_bytes == 1 << 30
        assert all(d % 8 == 0 for d in load.target)


def test_unit_work():
    work = Work(gram_flop=10, apply_flop=100, input_bytes=0, bytes=0)
    found = {name: unit_work(work, name) for name in ARITHMETIC}
    assert found == {
        "highest": UnitWork("tf32", 330),
        "high": UnitWork("tf32", 110),
        "medium": UnitWork("bf16", 210),
        "bf16": UnitWork("bf16", 210),
    }


def test_small_batches_come_first():
    options = Options(workloads=("gram", "apply"), n=(1024, 64), arithmetic=("highest",))
    found = [(case.load.name, case.n) for case in options.cases()]
    assert found == [("gram", 64), ("apply", 64), ("gram", 1024), ("apply", 1024)]


def test_a_device_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda: torch finds no CUDA device" in capsys.readouterr().err


def test_a_device_without_pyguides_kernels_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_library, "why_missing", lambda: "pyguide has no CUDA kernels")
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda: pyguide has no CUDA kernels" in capsys.readouterr().err


def test_only_gpus_capture_graphs():
    load = workload("conv-fcn")
    names = [c.name for c in CANDIDATES]
    on_cpu = {c.name for c in candidates_of(load, names, "cpu")}
    on_cuda = {c.name for c in candidates_of(load, names, "cuda")}
    assert on_cuda - on_cpu == {"pyguide-graph", "eager-graph", "compile-graph"}
    bf16 = load.at(64, torch.bfloat16)
    assert "compile-bf16" in {c.name for c in candidates_of(bf16, names, "cuda")}
    gram = {c.name for c in candidates_of(workload("gram-large"), names, "cuda")}
    assert gram == {"pyguide", "pyguide-graph", "eager", "eager-graph", "mm"}


# What follows needs a GPU.

ON_CUDA = [
    (w.name, a, c.name)
    for w in WORKLOADS
    if w.dtype == torch.float32
    for a in ARITHMETIC
    for c in candidates_of(
        w.tiny().at(32, ARITHMETIC[a].dtype), [c.name for c in CANDIDATES], "cuda"
    )
    if not c.compiles and c.name != "compile-graph"
]


@pytest.mark.cuda
@pytest.mark.parametrize(("load", "arithmetic", "name"), ON_CUDA)
def test_a_candidate_agrees_with_the_reference_on_cuda(load, arithmetic, name):
    if candidate(name).package is not None:
        pytest.importorskip(candidate(name).package[1])
    tiny = workload(load).tiny()
    how = ARITHMETIC[arithmetic]
    tiny = tiny.at(tiny.n or 32, how.dtype)
    with how.in_force():
        problem = tiny.make(tiny.n, 0, torch.device("cuda", 0))
        run_candidate = candidate(name).make(tiny)
        result = run_candidate(problem)
        result = run_candidate(problem)  # a graph's second call replays
        found = errors(problem, result, exact(tiny, problem))
    if candidate(name).uncentered:
        return
    value, gradient = {"highest": (1e-5, 1e-4), "high": (5e-3, 1e-2)}.get(arithmetic, (3e-2, 5e-2))
    assert found.value < value
    assert found.gradient is None or found.gradient < gradient


@pytest.mark.cuda
def test_clocks_ceilings_and_memory_of_cuda():
    device = device_named("cuda", quick=False)
    load = workload("gram-large").at(64, torch.float32)
    problem = load.make(64, 0, device.torch_device)
    run_it = candidate("eager").make(load)
    run_it(problem)
    warm, cold = (clock(run_it, problem, 5) / 5 for clock in device.caches.values())
    assert 0.5 < warm / cold < 2  # 1 GiB does not fit into any L2
    assert device.host(run_it, problem, 1) < warm
    rates = {name: probe() for name, probe in device.probes().items()}
    assert rates["bf16"] > rates["tf32"] > 1e12
    assert 1e11 < rates["copy"] < 2e13
    assert 2**30 / warm < rates["copy"]
    measured = device.peak_memory(load, 64, 0, "eager")
    assert measured["peak"] >= 2**27  # the centred copy of a layer


@pytest.mark.cuda
def test_a_quick_run_on_cuda(tmp_path):
    result = run(Options(device="cuda", n=(32,), rounds=3, budget=2.0, quick=True), out=None)
    assert result["finished"]
    rows = [row for entry in result["workloads"] for row in entry["rows"]]
    assert {row["status"] for row in rows} <= {"timed", "missing"}
    ours = [row for row in rows if row["candidate"].startswith("pyguide")]
    assert ours and not any(row["wrong"] for row in ours)
