"""A whole benchmark: every workload, with its candidates, into one result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pyguide.bench import result as results
from pyguide.bench.candidates import CANDIDATES, Candidate, candidates_of
from pyguide.bench.ceilings import Ceilings
from pyguide.bench.check import TOLERANCE, errors, exact
from pyguide.bench.machine import describe
from pyguide.bench.memory import available_bytes, peak_memory
from pyguide.bench.timing import Plan, Timed, first_call, time_interleaved
from pyguide.bench.workloads import WORKLOADS, Problem, Workload, workload

__all__ = ["Options", "Progress", "run"]


@dataclass(frozen=True)
class Options:
    """What is run; two runs with the same options can be joined."""

    workloads: tuple[str, ...] = tuple(w.name for w in WORKLOADS)
    n: tuple[int, ...] = (256,)
    candidates: tuple[str, ...] = tuple(c.name for c in CANDIDATES)
    rounds: int = 15
    budget: float = 120.0
    seed: int = 0
    quick: bool = False

    def sizes(self) -> list[tuple[Workload, int]]:
        """Every workload with every batch size that it has."""
        chosen = [workload(name) for name in self.workloads]
        if self.quick:
            chosen = [w.tiny() for w in chosen]
        return [(w, n) for w in chosen for n in (self.n if w.n is None else (w.n,))]


# Receives the part of all workloads that is done, from 0 to 1, and what is going on.
Progress = Callable[[float, str], None]


def run(
    options: Options,
    *,
    out: Path | None = None,
    resume: bool = False,
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
    progress, on_workload : callable
        Told of every step, and of every finished workload with the result so far.

    Raises
    ------
    UserError
        If ``out`` cannot be written, or is of another run.
    """
    result = _new_result(options)
    if resume and out is not None:
        result = results.resume(out, result)
    finished = {(e["workload"], e["n"]) for e in result["workloads"]}
    sizes = options.sizes()
    ceilings = Ceilings(quick=options.quick, samples=result["ceilings"]["samples"])
    result["ceilings"]["samples"] = ceilings.samples

    def record() -> None:
        progress(len(result["workloads"]) / len(sizes), "ceilings")
        ceilings.measure()
        results.summarize(result)
        if out is not None:
            results.save(out, result)

    record()
    for load, n in sizes:
        if (load.name, n) in finished:
            continue
        base = len(result["workloads"])

        def within(part: float, what: str, base: int = base, name: str = load.name) -> None:
            progress((base + part) / len(sizes), f"{name}: {what}")

        entry = _run_workload(load, n, options, within)
        result["workloads"].append(entry)
        record()
        on_workload(result, entry)
    result["finished"] = True
    if out is not None:
        results.save(out, result)
    return result


def _new_result(options: Options) -> dict[str, Any]:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    return {
        "format": results.FORMAT,
        "quick": options.quick,
        "finished": False,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": plain,
        **describe(),
        "tolerance": TOLERANCE,
        "ceilings": {"samples": {}},
        "workloads": [],
    }


def _run_workload(load: Workload, n: int, options: Options, progress: Progress) -> dict[str, Any]:
    work = load.least_work(n)
    chosen = candidates_of(load, list(options.candidates))
    rows: dict[str, dict[str, Any]] = {c.name: _row(c, load, n) for c in chosen}
    able = [c for c in chosen if rows[c.name]["status"] == "timed"]
    if able:
        _time(able, rows, load, n, options, progress)
    # After the timing, whose tensors are gone by now.
    timed = [name for name, row in rows.items() if row["status"] == "timed"]
    for i, name in enumerate(timed):
        progress(0.8 + 0.2 * i / len(timed), f"memory of {name}")
        rows[name]["memory"] = peak_memory(load, n, options.seed, name, torch.get_num_threads())
    return {
        "workload": load.name,
        "n": n,
        "description": load.description,
        "dtype": str(load.dtype).removeprefix("torch."),
        "least_flop": work.flop,
        "least_bytes": work.bytes,
        "rows": list(rows.values()),
    }


def _row(c: Candidate, load: Workload, n: int) -> dict[str, Any]:
    """A row that says whether the candidate can run."""
    missing = c.missing()
    if missing is not None:
        return {"candidate": c.name, "status": "missing", "reason": missing}
    # The check holds the exact gradient beside the candidate's.
    need = load.least_work(n).input_bytes + load.layer_bytes(n, *load.target)
    need += c.extra_bytes(load, n)
    available = available_bytes()
    if available is not None and need > available:
        reason = f"needs about {need / 2**30:.1f} GiB; {available / 2**30:.1f} GiB are free"
        return {"candidate": c.name, "status": "skipped", "reason": reason}
    return {"candidate": c.name, "status": "timed"}


def _time(
    able: list[Candidate],
    rows: dict[str, dict[str, Any]],
    load: Workload,
    n: int,
    options: Options,
    progress: Progress,
) -> None:
    """Fill in the rows of the candidates."""
    progress(0.0, "inputs and reference")
    problem = load.make(n, options.seed)
    timed = _first_calls(able, rows, load, problem, progress)
    plan = Plan(options.rounds, options.budget, sample=0.001 if options.quick else 0.02)
    time_interleaved(
        list(timed.values()), problem, plan, lambda part: progress(0.3 + 0.5 * part, "rounds")
    )
    for name, times in timed.items():
        rows[name] |= {
            "first_call_seconds": times.first,
            "compiles": times.compiles,
            "calls_per_sample": times.calls,
            "samples": times.samples,
        }


def _first_calls(
    able: list[Candidate],
    rows: dict[str, dict[str, Any]],
    load: Workload,
    problem: Problem,
    progress: Progress,
) -> dict[str, Timed]:
    """Call every candidate once and check what it returns."""
    expected = exact(load, problem)
    timed: dict[str, Timed] = {}
    for i, c in enumerate(able):
        progress(0.1 + 0.2 * i / len(able), f"first call of {c.name}")
        call = c.make(load)
        assert call is not None
        try:
            first, got = first_call(call, problem, compiles=c.compiles)
        except Exception as error:  # a peer's or the compiler's; the others still run
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows[c.name] |= {"status": "failed", "reason": reason}
            continue
        found = errors(problem, got, expected)
        del got
        rows[c.name] |= {
            "error": {"value": _json(found.value), "gradient": _json(found.gradient)},
            "wrong": found.wrong,
        }
        timed[c.name] = Timed(call, first, compiles=c.compiles)
    return timed


def _json(value: float | None) -> float | str | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else str(value)
