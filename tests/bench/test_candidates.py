"""Every candidate computes what its workload says: a wrong baseline would flatter pyguide."""

from __future__ import annotations

import math

import pytest
import torch

from pyguide.bench.candidates import CANDIDATES, Result, candidate, candidates_of
from pyguide.bench.check import Errors, errors, exact
from pyguide.bench.workloads import WORKLOADS, workload

NAMES = [c.name for c in CANDIDATES]
CASES = [(w.name, c.name) for w in WORKLOADS for c in candidates_of(w, NAMES)]
N = 32  # where every debiased CKA of the tiny layers is positive: pytorch-cka clamps


def cases(*, compiles: bool):
    return [case for case in CASES if candidate(case[1]).compiles is compiles]


def measured(workload_name: str, candidate_name: str) -> Errors:
    tiny = workload(workload_name).tiny()
    tiny = tiny.at(tiny.n or N, None)
    problem = tiny.make(tiny.n, seed=0)
    run = candidate(candidate_name).make(tiny)
    return errors(problem, run(problem), exact(tiny, problem))


def assert_right(found: Errors, load: str, name: str) -> None:
    value, gradient = 1e-5, 4e-3 if load == "bf16" else 1e-4
    if name == "eager-bf16":
        value, gradient = 3e-2, 3e-2
    if load == "rbf" and name != "pyguide":  # the lower of the two distances in the middle
        value, gradient = 1e-3, 1e-2
    assert found.value < value
    assert found.gradient is None or found.gradient < gradient


@pytest.mark.parametrize(("load", "name"), cases(compiles=False))
def test_a_candidate_agrees_with_the_reference(load, name):
    if candidate(name).package is not None:
        pytest.importorskip(candidate(name).package[1])
    found = measured(load, name)
    assert_right(found, load, name)
    assert (found.gradient is None) == (workload(load).kind != "loss")


@pytest.mark.slow
@pytest.mark.parametrize(("load", "name"), cases(compiles=True))
def test_a_compiled_candidate_agrees_with_the_reference(load, name):
    torch.compiler.reset()
    assert_right(measured(load, name), load, name)


def test_which_candidates_compute_what():
    by_workload = {w.name: [c.name for c in candidates_of(w, NAMES)] for w in WORKLOADS}
    always = {"pyguide", "eager"}
    assert all(always <= set(names) for names in by_workload.values())
    others = {name: set(names) - always for name, names in by_workload.items()}
    assert others == {
        "gram-large": set(),
        "apply-large": set(),
        "conv-fcn": {"compile", "official"},
        "conv-conv": {"compile", "official"},
        "matrix": {"compile", "pytorch-cka"},
        "gram": {"compile"},
        "apply": {"compile"},
        "small-pair": {"compile", "official"},
        "small-pairs": {"compile", "official"},
        "per-token": {"compile", "official", "eager-bmm", "lightly-formula"},
        "feature-space": {"compile", "official", "eager-feature"},
        "rbf": set(),
        "rsa": set(),
        "bf16": {"compile", "official", "eager-bf16"},
    }


@pytest.mark.parametrize("factor", [1.01, math.nan])
@pytest.mark.parametrize("part", ["values", "gradient"])
def test_a_result_that_is_off_is_wrong(part, factor):
    tiny = workload("conv-conv").tiny()
    problem = tiny.make(N, seed=0)
    expected = exact(tiny, problem)
    parts = {"values": expected.values, "gradient": expected.gradient}
    assert not errors(problem, Result(**parts), expected).wrong
    parts[part] = [*parts[part][:-1], 1.5 * factor * parts[part][-1]]
    assert errors(problem, Result(**parts), expected).wrong


def test_the_same_seed_makes_the_same_tensors():
    tiny = workload("conv-fcn").tiny()
    one, same, other = (tiny.make(N, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.xs + one.ys, same.xs + same.ys, strict=True))
    assert not torch.equal(one.xs[0], other.xs[0])


@pytest.mark.parametrize(
    ("name", "n", "gflop", "gigabytes"),
    [
        # n (n + 1) a feature for a Gram matrix, 2 n^2 for a gradient; float32 read once.
        ("conv-fcn", 256, 44.69, 0.674),
        ("conv-conv", 256, 161.5, 1.889),
        ("matrix", 256, 40.45, 0.630),
        ("gram", 256, 40.45, 0.635),
        ("apply", 256, 80.60, 1.265),
        ("per-token", 64, 0.2705, 0.0126),
        ("bf16", 256, 44.69, 0.337),
        # In feature space: X^T X and Y^T Y (their triangles), X^T Y, and two for the gradient.
        ("feature-space", 4096, 2.149, 0.0126),
    ],
)
def test_least_work(name, n, gflop, gigabytes):
    work = workload(name).least_work(n)
    assert work.flop / 1e9 == pytest.approx(gflop, rel=1e-3)
    assert work.bytes / 1e9 == pytest.approx(gigabytes, rel=5e-3)
