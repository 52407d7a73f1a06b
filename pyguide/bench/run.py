"""A whole benchmark: every workload, with its candidates, into one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pyguide.bench import result as results
from pyguide.bench.arithmetic import ARITHMETIC, Arithmetic
from pyguide.bench.candidates import CANDIDATES, Candidate, Result, candidate, candidates_of
from pyguide.bench.ceilings import Ceilings
from pyguide.bench.check import TOLERANCE, errors, exact
from pyguide.bench.device import CPU, device_named
from pyguide.bench.machine import describe
from pyguide.bench.timing import Plan, Timed, first_call, time_interleaved
from pyguide.bench.workloads import WORKLOADS, Problem, Workload, workload
from pyguide.reference import h_center

__all__ = ["Options", "Progress", "run"]


# Until a call returns: measured where it is shorter than this.
_LONGEST_HOST_CALL = 0.02


@dataclass(frozen=True)
class Case:
    """One workload at one batch size in one arithmetic."""

    load: Workload
    n: int
    arithmetic: Arithmetic

    @property
    def key(self) -> tuple[str, int, str]:
        return self.load.name, self.n, self.arithmetic.name


@dataclass(frozen=True)
class Options:
    """What is run; two runs with the same options can be joined.

    ``workloads`` and ``arithmetic`` default to the device's.
    """

    device: str = "cpu"
    workloads: tuple[str, ...] = ()
    n: tuple[int, ...] = (256,)
    arithmetic: tuple[str, ...] = ()
    candidates: tuple[str, ...] = tuple(c.name for c in CANDIDATES)
    rounds: int = 15
    budget: float = 120.0
    seed: int = 0
    quick: bool = False

    def on(self, device: CPU) -> Options:
        """With the device's defaults filled in."""
        default = tuple(w.name for w in WORKLOADS if device.runs_by_default(w))
        return replace(
            self,
            workloads=self.workloads or default,
            arithmetic=self.arithmetic or device.arithmetic,
        )

    def cases(self) -> list[Case]:
        """Every workload with every batch size and arithmetic, small batches first."""
        cases = []
        for name in self.workloads:
            load = workload(name).tiny() if self.quick else workload(name)
            for n in self.n if load.n is None else (load.n,):
                for arithmetic in (ARITHMETIC[a] for a in self.arithmetic):
                    cases.append(Case(load.at(n, arithmetic.dtype), n, arithmetic))
        return sorted(cases, key=lambda case: case.n > 256)


# Receives the part of all workloads that is done, from 0 to 1, and what is going on.
Progress = Callable[[float, str], None]


def run(
    options: Options,
    *,
    out: Path | None = None,
    resume: bool = False,
    seconds: float = math.inf,
    commit: str | None = None,
    progress: Progress = lambda done, what: None,
    on_workload: Callable[[dict[str, Any], dict[str, Any]], None] = lambda result, entry: None,
) -> dict[str, Any]:
    """Run what is not yet in ``out`` and return the result.

    Parameters
    ----------
    options : Options
    out : Path, optional
        JSON, written anew after every workload.
    resume : bool
        Continue the run in ``out``.
    seconds : float
        Start no workload that might end later than this, judged by the longest so far.
    commit : str, optional
        The source's, where git does not tell.
    progress, on_workload : callable
        Told of every step, and of every finished workload with the result so far.

    Raises
    ------
    UserError
        If ``out`` cannot be written, or is of another run.
    """
    start = time.monotonic()
    device = device_named(options.device, quick=options.quick)
    options = options.on(device)
    result = _new_result(options, device, commit)
    if resume and out is not None:
        result = results.resume(out, result)
    finished = {(e["workload"], e["n"], e["arithmetic"]) for e in result["workloads"]}
    cases = options.cases()
    todo = [case for case in cases if case.key not in finished]
    ceilings = Ceilings(result["ceilings"]["samples"])

    def record() -> None:
        progress(1 - len(todo) / len(cases), "ceilings")
        ceilings.measure(device.probes())
        results.summarize(result)
        if out is not None:
            results.save(out, result)

    record()
    longest = 0.0
    while todo:
        begun = time.monotonic()
        if begun - start + longest > seconds:
            return result
        case = todo[0]
        base = len(cases) - len(todo)

        def within(part: float, what: str, base: int = base, name: str = case.load.name) -> None:
            progress((base + part) / len(cases), f"{name}: {what}")

        entries = _run_case(case, options, device, within)
        result["workloads"] += entries
        del todo[0]
        record()
        for entry in entries:
            on_workload(result, entry)
        longest = max(longest, time.monotonic() - begun)
    result["finished"] = True
    if out is not None:
        results.save(out, result)
    return result


def _new_result(options: Options, device: CPU, commit: str | None) -> dict[str, Any]:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    return {
        "format": results.FORMAT,
        "quick": options.quick,
        "finished": False,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": plain,
        **describe(device, commit),
        "tolerance": TOLERANCE,
        "ceilings": {"samples": {}},
        "workloads": [],
    }


def _run_case(
    case: Case, options: Options, device: CPU, progress: Progress
) -> list[dict[str, Any]]:
    """An entry for each state of the caches."""
    rows = _rows(case, options, device)
    samples: dict[str, dict[str, dict[str, Any]]] = {cache: {} for cache in device.caches}
    if any(row["status"] == "timed" for row in rows.values()):
        with case.arithmetic.in_force():
            samples = _time(rows, case, options, device, progress)
            _add_memory(rows, case, options, device, progress)
    entry = _entry(case, device)
    return [
        {
            **entry,
            "cache": cache,
            "rows": [row | of_cache.get(name, {}) for name, row in rows.items()],
        }
        for cache, of_cache in samples.items()
    ]


def _entry(case: Case, device: CPU) -> dict[str, Any]:
    work = case.load.least_work(case.n)
    unit_work = device.unit_work(work, case.arithmetic.name)
    return {
        "workload": case.load.name,
        "n": case.n,
        "arithmetic": case.arithmetic.name,
        "description": case.load.description,
        "dtype": str(case.load.dtype).removeprefix("torch."),
        "least_flop": work.flop,
        "input_bytes": work.input_bytes,
        "least_bytes": work.bytes,
        "unit": unit_work.unit,
        "unit_flop": unit_work.flop,
    }


def _rows(case: Case, options: Options, device: CPU) -> dict[str, dict[str, Any]]:
    """Rows that say which candidates can run."""
    load, n = case.load, case.n
    chosen = candidates_of(load, list(options.candidates), device.torch_device.type)
    free = device.free_bytes()
    rows = {c.name: _row(c, case, free) for c in chosen if not c.graph}
    # Graphs keep their memory between replays: they run where it fits beside all others'.
    timed = [c for c in chosen if rows.get(c.name, {}).get("status") == "timed"]
    beside = max((c.extra_bytes(load, n) for c in timed), default=0)
    for c in chosen:
        if c.graph:
            rows[c.name] = _row(c, case, free, beside)
            if rows[c.name]["status"] == "timed":
                beside += c.extra_bytes(load, n)
    return {c.name: rows[c.name] for c in chosen}


def _row(c: Candidate, case: Case, free: int | None, beside: int = 0) -> dict[str, Any]:
    missing = c.missing()
    if missing is not None:
        return {"candidate": c.name, "status": "missing", "reason": missing}
    # The check holds the exact gradient beside the candidate's.
    load, n = case.load, case.n
    need = load.least_work(n).input_bytes + load.layer_bytes(n, *load.target)
    need += c.extra_bytes(load, n) + beside
    if free is not None and need > free:
        reason = f"needs about {need / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        return {"candidate": c.name, "status": "skipped", "reason": reason}
    return {"candidate": c.name, "status": "timed"}


def _time(
    rows: dict[str, dict[str, Any]],
    case: Case,
    options: Options,
    device: CPU,
    progress: Progress,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Fill in the rows; return the samples of each candidate by the state of the caches."""
    progress(0.0, "inputs and reference")
    problem = case.load.make(case.n, options.seed, device.torch_device)
    timed = _first_calls(rows, case, problem, device, progress)
    sample = 0.001 if options.quick else device.sample_seconds
    plan = Plan(options.rounds, options.budget, sample)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for i, (cache, clock) in enumerate(device.caches.items()):

        def within(part: float, done: int = i, what: str = cache) -> None:
            progress(0.3 + 0.5 * (done + part) / len(device.caches), f"rounds, {what}")

        times = {name: replace(t, samples=[]) for name, t in timed.items()}
        time_interleaved(list(times.values()), problem, plan, within, clock)
        found[cache] = {
            name: {"calls_per_sample": t.calls, "samples": t.samples} for name, t in times.items()
        }
    if device.host is not None:
        warm = next(iter(found.values()))
        short = {k: t for k, t in timed.items() if min(warm[k]["samples"]) < _LONGEST_HOST_CALL}
        plan = Plan(options.rounds, options.budget, sample=0.0)
        time_interleaved(list(short.values()), problem, plan, lambda part: None, device.host)
        for name, t in short.items():
            rows[name]["host_samples"] = t.samples
    return found


def _add_memory(
    rows: dict[str, dict[str, Any]],
    case: Case,
    options: Options,
    device: CPU,
    progress: Progress,
) -> None:
    """After the timing, whose tensors are gone by now."""
    timed = [name for name, row in rows.items() if row["status"] == "timed"]
    for i, name in enumerate(timed):
        progress(0.8 + 0.2 * i / len(timed), f"memory of {name}")
        rows[name]["memory"] = device.peak_memory(case.load, case.n, options.seed, name)


def _first_calls(
    rows: dict[str, dict[str, Any]],
    case: Case,
    problem: Problem,
    device: CPU,
    progress: Progress,
) -> dict[str, Timed]:
    """Call every candidate once and check what it returns."""
    expected = exact(case.load, problem)
    loose = case.arithmetic.in_16_bits and case.load.kind in ("gram", "apply")
    timed: dict[str, Timed] = {}
    able = [candidate(name) for name, row in rows.items() if row["status"] == "timed"]
    if any(c.compiles for c in able):
        torch.compiler.reset()
    for i, c in enumerate(able):
        progress(0.1 + 0.2 * i / len(able), f"first call of {c.name}")
        call = c.make(case.load)
        assert call is not None
        try:
            first, got = first_call(
                call, problem, compiles=c.compiles, synchronize=device.synchronize
            )
        except Exception as error:  # a peer's or the compiler's; the others still run
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows[c.name] |= {"status": "failed", "reason": reason}
            continue
        if c.uncentered:
            got = Result([h_center(k.double()) for k in got.values], [])
        found = errors(problem, got, expected, loose=loose)
        del got
        rows[c.name] |= {
            "error": {"value": _json(found.value), "gradient": _json(found.gradient)},
            "wrong": found.wrong,
            "first_call_seconds": first,
            "compiles": c.compiles,
        }
        timed[c.name] = Timed(call, first, prepares=c.compiles or c.graph)
    return timed


def _json(value: float | None) -> float | str | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else str(value)
