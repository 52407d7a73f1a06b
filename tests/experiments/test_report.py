"""Summary, table and curves."""

from __future__ import annotations

import itertools

import pytest

from pyguide.experiments import report
from pyguide.experiments.config import ARMS, QUICK, Config

RUNS = [
    {"arm": "none", "seed": 1, "test_accuracy": 0.10},
    {"arm": "none", "seed": 2, "test_accuracy": 0.20},
    {"arm": "untrained", "seed": 1, "test_accuracy": 0.30},
    {"arm": "untrained", "seed": 2, "test_accuracy": 0.50},
    {"arm": "untrained", "seed": 3, "test_accuracy": 0.70},
]


def test_summary_by_hand():
    summary = report.summarize(RUNS, ARMS)
    accuracy, difference = summary["test_accuracy"], summary["difference_to_none"]
    assert set(accuracy) == {"none", "untrained"} and set(difference) == {"untrained"}
    assert accuracy["none"]["mean"] == pytest.approx(0.15)
    assert accuracy["none"]["standard_error"] == pytest.approx(0.05)
    assert accuracy["untrained"]["mean"] == pytest.approx(0.5)
    assert accuracy["untrained"]["standard_error"] == pytest.approx(0.2 / 3**0.5)
    # Seed 3 has no baseline: the differences are those of seeds 1 and 2, 0.2 and 0.3.
    assert difference["untrained"]["by_seed"] == pytest.approx({"1": 0.2, "2": 0.3})
    assert difference["untrained"]["mean"] == pytest.approx(0.25)
    assert difference["untrained"]["standard_error"] == pytest.approx(0.05)
    assert difference["untrained"]["n"] == 2


def test_the_summary_does_not_depend_on_the_order_of_completion():
    accuracies = enumerate([0.583, 0.591, 0.577, 0.602, 0.5659])
    runs = [{"arm": "none", "seed": seed, "test_accuracy": a} for seed, a in accuracies]
    summaries = [report.summarize(p, ["none"]) for p in itertools.permutations(runs)]
    assert all(summary == summaries[0] for summary in summaries)


def test_table_puts_the_measurement_beside_the_papers():
    results = {
        "summary": report.summarize(RUNS, ARMS),
        "guides": [{"seed": 1, "test_accuracy": 0.988}],
        "failed": {"trained-seed1": "it broke"},
    }
    text = report.table(Config(), results)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("|"))
    }
    assert rows["MNIST-1D, test accuracy (%)"] == ["15.00 ± 5.00", "–", "50.00 ± 11.55"]
    assert rows["paired difference to no guide"] == ["–", "–", "+25.00 ± 5.00"]
    assert rows["seeds"] == ["2", "–", "3"]
    paper = rows["paper: ImageNet, top-5 accuracy (%)"]
    assert paper == ["1.65 ± 1.21", "7.50 ± 1.51", "13.10 ± 0.72"]
    assert "98.8 % (seed 1)" in text and "trained-seed1: it broke" in text
    assert "at each run's own epoch of lowest validation loss" in text
    assert "smoke" not in text and "smoke" in report.table(QUICK, results)


def test_one_seed_has_no_standard_error():
    assert report.mean_and_error([0.25]) == (0.25, None)


def test_curves_are_a_png_even_of_nothing(tmp_path):
    report.plot_curves(Config(), [], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_by_run_and_epoch():
    keys = ["none-seed2"] * 2 + ["none-seed1"] * 3 + ["trained-seed1"]
    metrics = [{"key": k, "arm": k.split("-")[0], "val_loss": v} for v, k in enumerate(keys)]
    # Of seed 2 the last line was lost.
    assert report._by_epoch(metrics, "none", "val_loss").tolist() == [[2, 3], [0, 1]]
