"""Whether networks are wrong on the same samples."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from pyguide.experiments.harness.consistency import (
    consistency_of_groups,
    error_consistency,
    packed,
    unpacked,
)


def flags(seed, n=200, share=0.7):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


def test_it_is_cohens_kappa():
    a, b = flags(1), flags(2) | flags(1, share=0.4)
    assert error_consistency(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert error_consistency(a, b) == error_consistency(b, a)
    assert error_consistency(a, a) == 1.0


def test_independent_errors_are_near_0():
    assert abs(error_consistency(flags(1, 100_000), flags(2, 100_000))) < 0.02


def test_where_all_are_right_there_is_none():
    right = torch.ones(10, dtype=torch.bool)
    assert error_consistency(right, right) is None
    assert error_consistency(~right, ~right) is None
    assert error_consistency(right, ~right) == 0.0


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_packing_is_undone(n):
    for x in (flags(3, n), torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)):
        assert torch.equal(unpacked(packed(x)), x)
    assert len(packed(flags(3, n))) < n / 5 + 12


def test_groups_by_hand():
    a = {1: flags(1), 2: flags(2), 3: flags(3)}
    b = {1: flags(1), 2: flags(5)}
    rows = consistency_of_groups(
        {
            name: {seed: packed(x) for seed, x in group.items()}
            for name, group in [("a", a), ("b", b), ("empty", {})]
        }
    )
    assert [(row["first"], row["second"], row["pairs"]) for row in rows] == [
        ("a", "a", 3),
        ("a", "b", 4),
        ("b", "b", 1),
    ]
    within = [error_consistency(a[i], a[j]) for i, j in [(1, 2), (1, 3), (2, 3)]]
    between = [error_consistency(a[i], b[j]) for i, j in [(1, 2), (2, 1), (3, 1), (3, 2)]]
    assert rows[0]["mean"] == pytest.approx(sum(within) / 3) and rows[0]["same_seed"] is None
    assert rows[1]["mean"] == pytest.approx(sum(between) / 4)
    assert rows[1]["same_seed"] == pytest.approx((1.0 + error_consistency(a[2], b[2])) / 2)
    assert rows[2]["standard_error"] is None


def test_varied_guides_of_one_seed_are_apart(tiny_data, jobs_in_threads, tmp_path):
    from pyguide.cli import main
    from pyguide.files import read_json

    out = tmp_path / "run"
    options = ["--depth", "3", "--epochs", "1", "--seeds", "1", "--arms", "none", "trained"]
    options += ["--vary", "guide_epochs=1,2", "--workers", "1"]
    assert main(["train", "deep-fcn", *options, "--out", str(out)]) == 0
    rows = read_json(out / "results.json")["error_consistency"]
    found = {row["first"] for row in rows if row["first"].startswith("guides")}
    assert found == {"guides,guide_epochs=1", "guides,guide_epochs=2"}
    assert "trained guides, guide_epochs=1" in (out / "table.md").read_text()


def test_a_run_reports_it_for_the_guides_and_every_arm(tiny_data, jobs_in_threads, tmp_path):
    from pyguide.cli import main
    from pyguide.files import read_json

    out = tmp_path / "run"
    options = ["--depth", "3", "--epochs", "2", "--guide-epochs", "1", "--seeds", "1", "2"]
    assert main(["train", "deep-fcn", *options, "--workers", "1", "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    found = {(row["first"], row["second"]) for row in results["error_consistency"]}
    assert ("guides", "trained") in found and ("guides", "none") in found
    right = unpacked(results["runs"][0]["test_right"])
    assert right.float().mean().item() == pytest.approx(results["runs"][0]["test_accuracy"])
    assert "error consistency" in (out / "table.md").read_text()
