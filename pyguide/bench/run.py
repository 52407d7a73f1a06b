"""A whole benchmark: every case into one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyguide.bench import result as results
from pyguide.bench.case import Progress, run_case
from pyguide.bench.ceilings import Ceilings
from pyguide.bench.check import TOLERANCE
from pyguide.bench.device import device_named
from pyguide.bench.options import Options

__all__ = ["run"]


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
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    parts = {"tolerance": TOLERANCE, "ceilings": {"samples": {}}, "workloads": []}
    result = results.new(device, commit, plain, **parts)
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

        entries = run_case(case, options, device, within)
        result["workloads"] += entries
        del todo[0]
        record()
        for entry in entries:
            on_workload(result, entry)
        longest = max(longest, time.monotonic() - begun)
    result["finished"] = True
    results.save(out, result)
    return result
