"""Timing, memory and the machine's ceilings."""

from __future__ import annotations

import time

import pytest
import torch

from pyguide import _native
from pyguide.bench import ceilings, timing
from pyguide.bench.arithmetic import ARITHMETIC
from pyguide.bench.candidates import CANDIDATES, Candidate, candidate
from pyguide.bench.case import _row, _rows
from pyguide.bench.ceilings import Ceilings, cpu_probes
from pyguide.bench.device import CPU
from pyguide.bench.memory import peak_memory
from pyguide.bench.options import Case, Options
from pyguide.bench.timing import Plan, Timed, first_call, time_interleaved
from pyguide.bench.workloads import Workload, workload


class Clock:
    """Time that passes only in the functions it makes."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def function(self, name: str, *seconds: float):
        """Takes ``seconds[i]`` in its call i, and the last of them from there on."""
        left = list(seconds)

        def run(problem):
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def timed(clock, plan, prepares=(), **functions):
    """Time functions, given the seconds of their calls."""
    made = {}
    for name, seconds in functions.items():
        run = clock.function(name, *seconds)
        first, _ = first_call(run, None, compiles=False, synchronize=lambda: None)
        made[name] = Timed(run, first, prepares=name in prepares)
    clock.calls.clear()
    time_interleaved(list(made.values()), None, plan, lambda part: None)
    return made


def test_each_round_starts_with_the_next_candidate(clock):
    made = timed(clock, Plan(rounds=4, budget=100), a=[9, 1], b=[8, 2], c=[7, 3])
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab" + "abc"  # warm-up, four rounds
    assert [t.samples for t in made.values()] == [[1] * 4, [2] * 4, [3] * 4]
    assert [t.first for t in made.values()] == [9, 8, 7]


def test_the_budget_limits_the_rounds_but_not_below_three(clock):
    assert len(timed(clock, Plan(rounds=15, budget=40), a=[4], b=[4])["a"].samples) == 5
    assert len(timed(clock, Plan(rounds=15, budget=10), a=[4], b=[4])["a"].samples) == 3


def test_a_call_longer_than_the_budget_is_the_only_one(clock):
    made = timed(clock, Plan(rounds=5, budget=10), slow=[11], fast=[1])
    assert made["slow"].samples == [11]
    assert "slow" not in clock.calls
    assert made["fast"].samples == [1] * 5


def test_compiling_does_not_count_as_a_call(clock):
    made = timed(clock, Plan(rounds=4, budget=10), prepares=["c"], c=[50, 1])
    assert made["c"].samples == [1] * 4
    assert made["c"].first == 50


def test_short_calls_are_repeated_within_a_sample(clock):
    (made,) = timed(clock, Plan(rounds=3, budget=10, sample=0.02), a=[1e-3]).values()
    assert made.calls >= 20
    assert made.samples == pytest.approx([1e-3] * 3)
    # Calls that get faster once warm still fill a sample.
    (made,) = timed(clock, Plan(rounds=3, budget=10, sample=0.02), a=[1, 0.015, 1e-4]).values()
    assert made.calls >= 200


def test_the_ceiling_is_at_least_sgemm(monkeypatch, threads):
    threads(1)
    measured = Ceilings({})
    measured.measure(cpu_probes(quick=True))
    measured.measure(cpu_probes(quick=True))
    assert all(len(samples) == 2 for samples in measured.samples.values())
    assert measured.flops("fma") == max(measured.samples["probe"] + measured.samples["sgemm"]) > 1e9
    assert measured.bandwidth == max(measured.samples["copy"]) > 1e8

    def slow_probe(steps, threads, instruction_set=""):
        time.sleep(0.003)
        return 1.0

    monkeypatch.setattr(_native, "fma_peak", slow_probe)
    low = Ceilings({})
    low.measure(cpu_probes(quick=True))
    assert max(low.samples["probe"]) < 1e3
    assert low.flops("fma") == max(low.samples["sgemm"])


def test_the_probe_is_timed_at_torchs_number_of_threads(clock, monkeypatch, threads):
    threads(1)
    asked = []

    def probe(steps, threads, instruction_set=""):
        asked.append((steps, threads))
        clock.now += 1e-7 * steps
        return 2.0 * steps * threads

    monkeypatch.setattr(_native, "fma_peak", probe)
    rate = ceilings._probe(0.005)
    assert {count for _, count in asked} == {1}
    assert 1e-7 * asked[-1][0] >= 0.005
    assert rate == pytest.approx(2e7)


def test_the_longer_of_two_limits_is_the_ceiling():
    rates = Ceilings({"probe": [1e9], "sgemm": [2e9], "copy": [1e8], "tf32": [4e9, 3e9]})
    assert rates.seconds("fma", flop=4e9, bytes=1e7) == 2
    assert rates.seconds("fma", flop=2e9, bytes=3e8) == 3
    assert rates.seconds("tf32", flop=4e9, bytes=1e7) == 1


# One layer of 64 MiB, of which eager torch makes a centred copy and pyguide does not.
WIDE = Workload("wide", "", "gram", (1 << 18,))


def test_peak_memory_counts_what_is_freed_again():
    eager = peak_memory(WIDE, 64, 0, "eager", 1)
    ours = peak_memory(WIDE, 64, 0, "pyguide", 1)
    assert 60 << 20 < eager["peak"] < 96 << 20
    assert eager["retained"] < 8 << 20
    assert ours["peak"] < 32 << 20


def test_retained_memory_is_the_results():
    wide = Workload("wide", "", "loss", (1 << 16,), (256,))
    measured = peak_memory(wide, 64, 0, "pyguide", 1)
    assert 15 << 20 < measured["retained"] <= measured["peak"] < 40 << 20  # the gradient: 16 MiB


def test_memory_that_cannot_be_measured_is_said_to_be_missing():
    assert peak_memory(WIDE, 64, 0, "no such candidate", 1).startswith("not available: KeyError")


def test_a_candidate_that_needs_more_memory_than_there_is_is_skipped():
    greedy = Candidate("greedy", "", lambda workload: lambda problem: None, lambda w, n: 1 << 60)
    case = Case(workload("gram").tiny(), 16, ARITHMETIC["highest"])
    row = _row(greedy, case, CPU(quick=True).free_bytes())
    assert row["status"] == "skipped"
    assert "needs about 1073741824.0 GiB" in row["reason"]


def test_the_memory_estimate_covers_what_eager_takes():
    wide = Workload("wide", "", "loss", (1 << 17, 1 << 16), (1 << 16, 256))
    for name in ("eager", "official"):
        peak = peak_memory(wide, 64, 0, name, 1)["peak"]
        assert 0.5 * peak < candidate(name).extra_bytes(wide, 64) < 3 * peak


def test_graphs_run_where_their_memory_fits_beside_the_others(monkeypatch):
    """Candidates of 30 GB each and 64 GiB: all of them, but one graph."""
    for c in CANDIDATES:
        monkeypatch.setitem(c.__dict__, "extra_bytes", lambda load, n: 30 * 10**9)

    class Gpu(CPU):
        torch_device = torch.device("cuda")

        def free_bytes(self):
            return 64 << 30

    case = Case(workload("conv-fcn").tiny(), 16, ARITHMETIC["highest"])
    rows = _rows(case, Options(), Gpu(quick=True))
    skipped = [name for name, row in rows.items() if row["status"] == "skipped"]
    assert skipped == ["eager-graph", "compile-graph"]
    names = ["pyguide", "pyguide-graph", "eager", "eager-graph", "compile", "compile-graph"]
    assert list(rows) == [*names, "official"]
