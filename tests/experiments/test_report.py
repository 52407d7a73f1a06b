"""Summary, table and curves, for any metric."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pyguide.experiments.deep_fcn import EXPERIMENT
from pyguide.experiments.harness import report, statistics
from pyguide.experiments.harness.curves import by_epoch, plot_curves, plot_differences
from pyguide.experiments.harness.experiment import Metric, three_arms

SETTING = EXPERIMENT.scales["default"]
ARMS = SETTING.arms


def run(arm, seed, val_losses, accuracies):
    """A finished run and its records; its best epoch is its own."""
    records = [
        {
            "epoch": i + 1,
            "val_loss": loss,
            "task_loss": loss / 2,
            "test_loss": 2 * loss,
            **{f"{split}_accuracy": a for split in ("val", "test")},
            "train_accuracy": min(1.0, 2 * a),
        }
        for i, (loss, a) in enumerate(zip(val_losses, accuracies, strict=True))
    ]
    best = min(records, key=lambda record: record["val_loss"])
    key = f"{arm}-seed{seed}"
    result = {"key": key, "arm": arm, "seed": seed, "test_accuracy": best["test_accuracy"]}
    return result, {key: records}


# Epoch 2 is the best on average, though never that of a run of the arm "none".
NONE = [
    run("none", 1, [1.0, 1.1, 9.0], [0.50, 0.10, 0.0]),
    run("none", 2, [9.0, 1.1, 1.0], [0.0, 0.20, 0.60]),
]
UNTRAINED = [
    run("untrained", 1, [3.0, 2.0, 1.0], [0.0, 0.0, 0.30]),
    run("untrained", 2, [3.0, 2.0, 1.0], [0.0, 0.0, 0.50]),
    run("untrained", 3, [3.0, 2.0, 1.0], [0.0, 0.0, 0.70]),
]
RUNS = [result for result, _ in [*NONE, *UNTRAINED]]
RECORDS = {key: log for _, logs in [*NONE, *UNTRAINED] for key, log in logs.items()}
LEARNING_RATES = {"none": 1e-2, "trained": 3e-3, "untrained": 3e-3}


def summarize(runs=RUNS, arms=ARMS, **options):
    return statistics.summarize(arms, runs, RECORDS.__getitem__, SETTING.metric, **options)


def results(**changes):
    return {
        "learning_rates": LEARNING_RATES,
        "summary": summarize(),
        "sweep": [],
        "guides": [{"key": "guide-seed1", "test_accuracy": 0.988}],
        "runs": [],
        "failed": {},
        "error_consistency": [],
        **changes,
    }


def rows(text):
    """Cells of the first column's rows, of the first table that has the row."""
    found = {}
    for cells in (line.split("|") for line in text.splitlines() if line.startswith("|")):
        found.setdefault(cells[1].strip(), [cell.strip() for cell in cells[2:-1]])
    return found


def test_summary_by_hand():
    summary = summarize()
    assert set(summary) == {"none", "untrained"}
    none, untrained = summary["none"], summary["untrained"]
    assert none["epoch"] == 2 and untrained["epoch"] == 3
    assert none["test"]["by_seed"] == {"1": 0.10, "2": 0.20}
    assert none["test"]["mean"] == pytest.approx(0.15)
    assert none["test"]["standard_error"] == pytest.approx(0.05)
    assert none["test_at_own_epochs"]["by_seed"] == {"1": 0.50, "2": 0.60}
    assert "difference" not in none
    assert untrained["test"]["mean"] == pytest.approx(0.5)
    assert untrained["test"]["standard_error"] == pytest.approx(0.2 / 3**0.5)
    # Seed 3 has no baseline: the differences are those of seeds 1 and 2, 0.2 and 0.3.
    difference = untrained["difference"]
    assert untrained["baseline"] == "none" and difference["n"] == 2
    assert difference["by_seed"] == pytest.approx({"1": 0.2, "2": 0.3})
    assert difference["mean"] == pytest.approx(0.25)
    assert difference["standard_error"] == pytest.approx(0.05)
    # The paper has the untrained guide above none; 0.25 is beyond two errors of 0.05.
    assert untrained["verdict"] == "reproduced" and "gap_verdict" not in untrained


def test_the_gap_between_training_and_validation_by_hand():
    summary = summarize(judge_gap=True)
    none, untrained = summary["none"], summary["untrained"]
    # In the last epoch: seed 1 has 0 and 0, seed 2 has 1 and 0.6.
    assert none["final_train"]["by_seed"] == {"1": 0.0, "2": 1.0}
    assert none["gap"]["by_seed"] == pytest.approx({"1": 0.0, "2": 0.4})
    assert none["loss_gap"]["by_seed"] == pytest.approx({"1": 4.5, "2": 0.5})
    assert untrained["gap"]["by_seed"] == pytest.approx({"1": 0.3, "2": 0.5, "3": 0.3})
    # 0.3 - 0.0 and 0.5 - 0.4.
    assert untrained["gap_difference"]["by_seed"] == pytest.approx({"1": 0.3, "2": 0.1})
    assert untrained["gap_verdict"] == "within noise"


@pytest.mark.parametrize(
    ("mean", "error", "sign", "expected"),
    [
        (2.1, 1.0, 1, "reproduced"),
        (2.1, 1.0, -1, "not reproduced"),
        (-2.1, 1.0, -1, "reproduced"),
        (1.9, 1.0, 1, "within noise"),
        (-1.9, 1.0, 1, "within noise"),
        (5.0, None, 1, None),
    ],
)
def test_a_verdict_needs_two_standard_errors(mean, error, sign, expected):
    assert statistics.verdict({"mean": mean, "standard_error": error}, sign) == expected


def test_what_the_paper_says_without_a_number():
    arms = [
        ARMS[0],
        replace(ARMS[1], name="untrained", paper=None, expected="worse"),
    ]
    assert summarize(arms=arms)["untrained"]["verdict"] == "not reproduced"
    nothing = replace(arms[1], expected=None)
    assert "verdict" not in summarize(arms=[arms[0], nothing])["untrained"]


def test_a_verdict_on_the_loss():
    arm = replace(ARMS[2], paper=None, expected="worse", judged_by_loss=True)
    summary = summarize(arms=[ARMS[0], arm])
    # 2 * 1.0 in epoch 3 against 2 * 1.1 in epoch 2: less, whatever the accuracy.
    found = summary["untrained"]
    assert found["loss_difference"]["by_seed"] == pytest.approx({"1": -0.2, "2": -0.2})
    assert found["verdict"] == "not reproduced"
    better = summarize(arms=[ARMS[0], replace(arm, expected="better")])["untrained"]
    assert better["verdict"] == "reproduced"
    text = report.table(SETTING, SETTING.config, [ARMS[0], arm], results(summary=summary))
    assert rows(text)["untrained guide"][2] == "not reproduced (loss -0.20 ± 0.00)"


def test_the_summary_does_not_depend_on_the_order_of_completion():
    summaries = [summarize(order) for order in itertools.permutations(RUNS)]
    assert all(summary == summaries[0] for summary in summaries)


def test_the_baseline_may_come_later_or_be_missing():
    assert "difference" in summarize(arms=ARMS[::-1])["untrained"]
    only = summarize([run for run in RUNS if run["arm"] == "untrained"])
    assert set(only) == {"untrained"} and "difference" not in only["untrained"]


def test_table_puts_the_measurement_beside_the_papers():
    text = report.table(
        SETTING, SETTING.config, ARMS, results(failed={"trained-seed1": "it broke"})
    )
    found = rows(text)
    assert found["no guide"] == [
        "15.00 ± 5.00",
        "–",
        "–",
        "55.00 ± 5.00",
        "2",
        "2",
        "0.01",
        "1.65 ± 1.21",
    ]
    assert found["trained guide"] == [*["–"] * 6, "0.003", "7.50 ± 1.51"]
    assert found["untrained guide"] == [
        "50.00 ± 11.55",
        "+25.00 ± 5.00",
        "reproduced",
        "50.00 ± 11.55",
        "3",
        "3",
        "0.003",
        "13.10 ± 0.72",
    ]
    assert "MNIST-1D, test accuracy (%)" in text and "paper: ImageNet, top-5 accuracy (%)" in text
    assert "98.8 (seed1)" in text and "Failed: trained-seed1: it broke" in text
    assert "epoch with the lowest validation loss averaged over the seeds" in text
    quick = replace(SETTING.config, quick=True)
    assert "smoke" not in text and "smoke" in report.table(SETTING, quick, ARMS, results())


def test_where_the_papers_difference_is_noise():
    # 3-4-5: of standard errors 3 and 4 the difference has 5, and 10 is within two of them.
    arms = three_arms(none=(50.0, 3.0), untrained=(60.0, 4.0))
    text = report.table(SETTING, SETTING.config, arms, results())
    assert rows(text)["untrained guide"][2] == "reproduced (noise in the paper)"
    lines = report.results_table([("an-experiment", SETTING, arms, results())])
    (row,) = [line for line in lines if line.startswith("| an-experiment")]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:3] == ["untrained guide", "50.00 ± 11.55", "accuracy (%)"]
    assert cells[4] == "reproduced (noise in the paper)" and cells[-1] == "+10.00 ± 5.00"
    for paper in [(60.1, 4.0), (60.0, None)]:
        arms = three_arms(none=(50.0, 3.0), untrained=paper)
        text = report.table(SETTING, SETTING.config, arms, results())
        assert rows(text)["untrained guide"][2] == "reproduced"


def test_the_cost_of_guides_by_hand():
    summary = summarize()
    guided = {"guide": 0.001, "distances": 0.002, "backward": 0.0005, "step": 0.010}
    summary["untrained"] |= {"times": guided}
    summary["none"] |= {"times": {"guide": 0.003, "step": 0.004}}
    aligned = [
        {"arm": "none", "seconds": 10.0, "initialization": {"steps": 3, "seconds": seconds}}
        for seconds in (1.0, 9.0, 2.0)
    ]
    text = report.table(SETTING, SETTING.config, ARMS, results(summary=summary, runs=aligned))
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["untrained guide", "10.0", "10 %", "20 %", "5 %", "35 %"] in found
    assert ["no guide", "4.0", "75 %", "–", "–", "75 %"] in found
    assert "Alignment took, of a run's whole time (median): no guide 20 %." in text
    assert "Alignment" not in report.table(SETTING, SETTING.config, ARMS, results())


def test_the_sweep_shows_every_rate_and_what_was_picked():
    config = replace(SETTING.config, sweep=True, lrs=(1e-3, 3e-3, 1e-2), arms=("none", "trained"))
    sweep = [
        {"arm": "none", "lr": 1e-3, "val_loss": 2.0},
        {"arm": "none", "lr": 3e-3, "val_loss": 1.5},
        {"arm": "none", "lr": 1e-2, "diverged": "loss became nan"},
        {"arm": "trained", "lr": 1e-3, "val_loss": 1.25},
    ]
    rates = {"none": 3e-3, "trained": 1e-3}
    text = report.table(SETTING, config, ARMS[:2], results(sweep=sweep, learning_rates=rates))
    table = rows(text[text.index("lowest validation loss |") - 2 :])
    assert table["no guide"] == ["2.000", "**1.500**", "diverged"]
    assert table["trained guide"] == ["**1.250**", "–", "–"]
    assert "edge of the rates" in text and text.split("lie outside: ")[1].startswith(
        "trained guide."
    )


class Perplexity(type(SETTING)):
    """Another metric, with no unit, and no paper."""

    metric = Metric("perplexity", "perplexity", unit="", scale=1.0, higher_is_better=False)
    arms = three_arms()
    chance = None


def test_another_metric():
    setting = Perplexity()
    runs = [
        {"key": f"{arm}-seed{seed}", "arm": arm, "seed": seed, "test_perplexity": value}
        for arm, seed, value in [("none", 1, 69.0), ("none", 2, 71.0), ("trained", 1, 40.0)]
    ]
    records = {
        run["key"]: [
            {
                "epoch": 1,
                "val_loss": 4.0,
                "task_loss": 3.0,
                "test_loss": 4.0,
                "train_perplexity": 50.0,
                "val_perplexity": 60.0,
                "test_perplexity": run["test_perplexity"],
            }
        ]
        for run in runs
    }
    summary = statistics.summarize(setting.arms, runs, records.__getitem__, setting.metric)
    # Lower is better: the gap is validation less training.
    assert summary["none"]["gap"]["mean"] == 10.0
    text = report.table(setting, setting.config, setting.arms, results(summary=summary, guides=[]))
    found = rows(text)
    assert found["no guide"][0] == "70.00 ± 1.00" and found["trained guide"][1] == "-29.00"
    assert "test perplexity, lower is better" in text and "paper" not in text


def test_one_seed_has_no_standard_error():
    assert statistics.mean_and_error([0.25]) == (0.25, None)


@pytest.mark.parametrize("setting", [SETTING, Perplexity()], ids=["accuracy", "perplexity"])
@pytest.mark.parametrize("runs", [RUNS, []], ids=["runs", "nothing"])
def test_curves_are_a_png_even_of_nothing(setting, runs, tmp_path):
    path = tmp_path / "curves.png"
    plot_curves(setting, setting.config, setting.arms, runs, RECORDS, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("lowest", "scale"), [(30.0, "linear"), (10.0, "log"), (0.0, "linear")])
def test_an_axis_is_logarithmic_where_that_has_labels(lowest, scale, tmp_path, monkeypatch):
    """Of perplexities from 100 down; accuracies begin at 0."""
    records = {
        key: [r | {"val_perplexity": 100 - i * (100 - lowest)} for i, r in enumerate(log[:2])]
        for key, log in RECORDS.items()
    }
    figures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: figures.append(self)
    )
    for setting, expected in [(Perplexity(), scale), (SETTING, "linear")]:
        plot_curves(setting, setting.config, setting.arms, RUNS, records, tmp_path / "curves.png")
        axes = figures[-1].axes[1]
        assert axes.get_yscale() == expected
        figures[-1].canvas.draw()
        assert any(label.get_text() for label in axes.get_yticklabels())


def test_more_arms_than_colours(tmp_path):
    config = SETTING.config.changed({"vary": ["depth=2,3,4"]})
    arms = SETTING.variants(config)
    assert len(arms) == 9
    runs = [run | {"arm": run["arm"] + ",depth=2"} for run in RUNS]
    plot_curves(SETTING, config, arms, runs, RECORDS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("runs", [RUNS, [], RUNS[:1]], ids=["seeds", "no run", "no difference"])
def test_differences_are_drawn(runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar",
        lambda self, x, y, *, xerr, **_: drawn.append((x, y, xerr)),
    )
    path = tmp_path / "differences.png"
    plot_differences(SETTING, SETTING.config, ARMS, summarize(runs), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    # In percent: 25 with an error of 5.
    assert drawn == ([pytest.approx((25.0, 0, 10.0))] if runs is RUNS else [])


def test_a_metric_by_run_and_epoch():
    assert by_epoch(RUNS, RECORDS, "none", "val_loss") == [[1.0, 1.1, 9.0], [9.0, 1.1, 1.0]]
    assert by_epoch(RUNS, RECORDS, "none", "train_perplexity") == []
    assert by_epoch(RUNS, RECORDS, "trained", "val_loss") == []
