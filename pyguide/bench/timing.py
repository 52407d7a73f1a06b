"""Timing of several functions on the same tensors, interleaved."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch.compiler.config as compiler_config

from pyguide.bench.candidates import Result, Run
from pyguide.bench.workloads import Problem

__all__ = ["Clock", "Plan", "Timed", "first_call", "host_clock", "time_interleaved"]

_FEWEST_ROUNDS = 3

#: Seconds of so many calls, one after the other.
Clock = Callable[[Run, Problem, int], float]


@dataclass(frozen=True)
class Plan:
    """How much is timed.

    Attributes
    ----------
    rounds : int
        Samples of each candidate, if the budget allows; never fewer than three, unless one
        call takes longer than the budget.
    budget : float
        Seconds for all rounds of a workload.
    sample : float
        Least seconds of one sample; shorter calls are repeated within it.
    """

    rounds: int
    budget: float
    sample: float = 0.02


@dataclass
class Timed:
    """A candidate's times, in seconds a call."""

    run: Run
    first: float
    prepares: bool = False  # in its first call, which then tells nothing of the next
    calls: int = 1
    samples: list[float] = field(default_factory=list)


def first_call(
    run: Run, problem: Problem, *, compiles: bool, synchronize: Callable[[], None]
) -> tuple[float, Result]:
    """Seconds of the first, cold call, and what it returned.

    What ``compiles`` does so without the caches that torch keeps on disk.
    """
    with ExitStack() as stack:
        if compiles:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
            no_caches = compiler_config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
            stack.enter_context(no_caches)
        start = time.perf_counter()
        result = run(problem)
        synchronize()
        return time.perf_counter() - start, result


def host_clock(run: Run, problem: Problem, calls: int) -> float:
    """By the host's clock: a :data:`Clock`."""
    start = time.perf_counter()
    for _ in range(calls):
        run(problem)
    return time.perf_counter() - start


def time_interleaved(
    candidates: list[Timed],
    problem: Problem,
    plan: Plan,
    progress: Callable[[float], None],
    clock: Clock = host_clock,
) -> None:
    """Fill in the samples of candidates that have had their first call.

    Every round takes one sample of each, and each round starts with another candidate.
    ``progress`` receives the part done, from 0 to 1.
    """
    cost = 0.0
    timed = []
    for candidate in candidates:
        seconds = _warm_up(candidate, problem, plan, clock)
        if seconds > plan.budget:
            candidate.samples = [seconds]
        else:
            timed.append(candidate)
            cost += seconds
    if not timed:
        return
    rounds = min(plan.rounds, max(_FEWEST_ROUNDS, int(plan.budget / cost)))
    for r in range(rounds):
        start = r % len(timed)
        for candidate in timed[start:] + timed[:start]:
            seconds = clock(candidate.run, problem, candidate.calls)
            candidate.samples.append(seconds / candidate.calls)
        progress((r + 1) / rounds)


def _warm_up(candidate: Timed, problem: Problem, plan: Plan, clock: Clock) -> float:
    """Choose the calls of a sample; return the seconds that it takes."""
    if candidate.first > plan.budget and not candidate.prepares:
        return candidate.first
    seconds = clock(candidate.run, problem, 1)
    while seconds < plan.sample:
        candidate.calls = max(2 * candidate.calls, int(candidate.calls * plan.sample / seconds))
        seconds = clock(candidate.run, problem, candidate.calls)
    return seconds
