"""Memory of the first step, seconds of the rounds, and ratios to unguided training."""

from __future__ import annotations

from typing import Any

from pyguide.bench import result as results
from training_steps.settings import NETWORKS, Candidate, Setting
from training_steps.workers import workers

_FEWEST_ROUNDS = 3


def measure(
    setting: Setting, threads: int, rounds: int, budget: float, chunk: int
) -> dict[str, Any]:
    """Rows of the candidates: memory, seconds of each round, ratios to unguided training.

    `budget` is about how many seconds the rounds take; there are at least three.
    """
    rows, running = [], []
    with workers(setting, threads, chunk) as started:
        for candidate, each in started:
            try:
                memory = each.memory()
            except EOFError:
                rows.append({**_described(candidate, threads), "failed": "the process ended early"})
                continue
            row = {**_described(candidate, threads), "memory": memory, "samples": []}
            rows.append(row)
            running.append((row, each))
        cost = sum(each.step() for _, each in running)  # the second step, which is not timed
        for r in range(min(rounds, max(_FEWEST_ROUNDS, int(budget / cost))) if running else 0):
            turn = r % len(running)
            for row, each in running[turn:] + running[:turn]:
                row["samples"].append(each.step())
    entry = {
        "group": setting.group,
        "networks": setting.networks,
        "description": NETWORKS[setting.networks].description,
        "n": setting.n,
        "pairs": setting.pairs,
        "rows": rows,
    }
    summarize(entry)
    return entry


def _described(candidate: Candidate, threads: int) -> dict[str, Any]:
    return {
        "candidate": candidate.name,
        "compared_with": candidate.base,
        "processes": candidate.processes,
        "threads": candidate.threads or threads,
    }


def summarize(entry: dict[str, Any]) -> None:
    """Spreads, and ratios of time, within the rounds, and of memory."""
    rows = {row["candidate"]: row for row in entry["rows"] if "samples" in row}
    for row in rows.values():
        row["seconds"] = results.spread(row["samples"])
        base = rows.get(row["compared_with"])
        if base is None:
            continue
        pairs = zip(row["samples"], base["samples"], strict=True)
        row["time_ratio"] = results.spread([own / other for own, other in pairs])
        if isinstance(row["memory"], dict) and isinstance(base["memory"], dict):
            row["memory_ratio"] = row["memory"]["peak"] / base["memory"]["peak"]
