"""One workload at one batch size in one arithmetic: its candidates, checked and timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pyguide.bench.candidates import Candidate, Result, candidate, candidates_of
from pyguide.bench.check import errors, exact
from pyguide.bench.device import CPU
from pyguide.bench.options import Case, Options
from pyguide.bench.timing import Plan, Timed, first_call, time_interleaved
from pyguide.bench.workloads import Problem
from pyguide.reference import h_center

__all__ = ["Progress", "run_case"]

# Receives the part of all workloads that is done, from 0 to 1, and what is going on.
Progress = Callable[[float, str], None]

# Until a call returns: measured where it is shorter than this.
_LONGEST_HOST_CALL = 0.02


def run_case(case: Case, options: Options, device: CPU, progress: Progress) -> list[dict[str, Any]]:
    """Time a case: an entry for each state of the caches."""
    rows = _rows(case, options, device)
    samples: dict[str, dict[str, dict[str, Any]]] = {cache: {} for cache in device.caches}
    if any(row["status"] == "timed" for row in rows.values()):
        try:
            with case.arithmetic.in_force():
                samples = _time(rows, case, options, device, progress)
                _add_memory(rows, case, options, device, progress)
        except torch.OutOfMemoryError as error:  # the estimates were too low; other cases fit
            samples = {cache: {} for cache in device.caches}
            for row in rows.values():
                if row["status"] == "timed":
                    row |= {"status": "failed", "reason": str(error).splitlines()[0]}
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
