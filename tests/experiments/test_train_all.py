"""``pyguide train all`` and ``--protocol``."""

from __future__ import annotations

import shutil

import pytest

from pyguide.cli import main
from pyguide.experiments import ablations, deep_fcn, find_experiments
from pyguide.experiments.harness import shared_jobs, suite
from pyguide.experiments.harness.config import Config
from pyguide.files import read_json

ALL = ["train", "all", "--only", "wide-fcn", "deep-fcn", "--workers", "1"]


@pytest.fixture
def quick_data(tiny_data, jobs_in_threads):
    pass


@pytest.fixture
def finished(quick_data, tmp_path):
    out = tmp_path / "all"
    assert main([*ALL, "--quick", "--out", str(out)]) == 0
    return out


def test_one_report_of_every_experiment(finished, capsys):
    capsys.readouterr()
    report = (finished / "report.md").read_text()
    for name in ("deep-fcn", "wide-fcn"):
        assert f"## {name}: " in report
        for picture in ("curves.png", "differences.png"):
            assert f"({name}/{picture})" in report and (finished / name / picture).is_file()
        assert read_json(finished / name / "config.json")["config"]["quick"]
    assert (
        report.count("A smoke run") == 2
        and "**Smoke runs" in report
        and "torch" in report
        and "minutes in all" in report
    )
    first = report.index("| deep-fcn"), report.index("## deep-fcn")
    assert first == tuple(sorted(first))


def test_it_goes_on_where_it_was(finished, capsys):
    expected = (finished / "report.md").read_text()
    shutil.rmtree(finished / "deep-fcn")
    next((finished / "wide-fcn" / "jobs").glob("none-*.jsonl")).unlink()
    capsys.readouterr()
    # Those that it began with: neither the others nor full runs.
    assert main(["train", "all", "--resume", str(finished), "--workers", "1"]) == 0
    folders = sorted(path.parent.name for path in finished.glob("*/config.json"))
    assert folders == ["deep-fcn", "wide-fcn"]
    printed = capsys.readouterr()
    assert "1 job, 1 at a time" in printed.err and "4 jobs, 1 at a time" in printed.err
    # The folder's own runs are smoke runs, so the new ones are.
    assert read_json(finished / "deep-fcn" / "config.json")["config"]["quick"]
    found = (finished / "report.md").read_text()
    assert found.split("| a step with a guide")[0] == expected.split("| a step with a guide")[0]


@pytest.mark.parametrize("settings", ["the same", "others", "versions"])
def test_jobs_of_an_experiment_that_another_extends_are_done_once(
    settings, quick_data, tmp_path, capsys, monkeypatch
):
    quick = {**deep_fcn.Small.quick, "arms": ("none", "trained", "trained-rsa")}
    if settings == "others":
        quick["epochs"] += 1
    elif settings == "versions":
        monkeypatch.setattr(shared_jobs, "versions", lambda packages: {"torch": "another"})
    monkeypatch.setattr(ablations.Small, "quick", quick)
    out = tmp_path / "all"
    only = ["--only", "deep-fcn", "ablations", "--quick", "--workers", "1"]
    assert main(["train", "all", *only, "--out", str(out)]) == 0
    ours, base = out / "ablations", out / "deep-fcn"
    copied = ["guide-seed1", "none-seed1", "trained-seed1"] if settings == "the same" else []
    for path in (ours / "jobs").iterdir():
        # The times in it would differ.
        twin = base / "jobs" / path.name
        same = twin.exists() and path.read_bytes() == twin.read_bytes()
        assert same == (path.stem in copied)
    assert f"\n{4 - len(copied)} job" in capsys.readouterr().err.split("ablations:")[1]
    those = f"{len(copied)} of them those of deep-fcn" in (out / "report.md").read_text()
    assert those == bool(copied)
    runs = read_json(ours / "results.json")["runs"]
    assert {run["arm"] for run in runs} == {"none", "trained", "trained-rsa"}
    text = (ours / "table.md").read_text()
    # What goes on has no work.
    assert main(["train", "all", "--resume", str(out), "--workers", "1"]) == 0
    assert capsys.readouterr().err.count("0 jobs") == 2 and (ours / "table.md").read_text() == text


def test_files_that_a_kill_cut_are_not_shared(quick_data, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.Small, "quick", {**deep_fcn.Small.quick, "arms": ("none",)})
    out = tmp_path / "all"
    begin = ["--only", "deep-fcn", "--quick", "--workers", "1", "--out", str(out)]
    assert main(["train", "all", *begin]) == 0
    for name, text in {"cut": '{"job": {"arm"', "empty": ""}.items():
        (out / "deep-fcn" / "jobs" / f"{name}.jsonl").write_text(text)
    more = ["--only", "ablations", "--workers", "1", "--resume", str(out)]
    assert main(["train", "all", *more]) == 0
    files = {path.stem for path in (out / "ablations" / "jobs").iterdir()}
    assert files == {"guide-seed1", "none-seed1"}


def test_an_interrupted_run_says_how_to_go_on(quick_data, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run_folder", interrupted)
    out = tmp_path / "all"
    assert main([*ALL, "--quick", "--out", str(out)]) == 130
    assert f"pyguide train all --resume {out}" in capsys.readouterr().err


def test_it_goes_on_as_it_began_where_nothing_was_done(quick_data, tmp_path, monkeypatch):
    """Interrupted before its first experiment: the device and --quick are not lost."""
    found = []

    def run_folder(path, experiment, scale, config, workers, seconds, *, resume):
        found.append((path.name, config.device, config.quick, resume))
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run_folder", run_folder)
    monkeypatch.setattr(suite, "check_device", lambda device: None)
    out = str(tmp_path / "all")
    begun = ["train", "all", "--only", "deep-fcn", "--quick", "--device", "cuda:7", "--out", out]
    assert main(begun) == 130 and main(["train", "all", "--resume", out]) == 130
    assert found == [("deep-fcn", "cuda:7", True, False)] * 2


@pytest.mark.parametrize("options", [["--device", "nothing"], ["--workers", "0"]])
def test_a_mistake_leaves_no_folder(options, tmp_path, capsys):
    out = tmp_path / "all"
    assert main(["train", "all", *options, "--out", str(out)]) == 2
    assert options[0] in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{folder}"], "exists: choose another"),
        (["--resume", "{folder}/none"], "there is no such folder"),
        (["--resume", "{folder}", "--quick"], "drop other options"),
        (["--resume", "{folder}"], "not a folder of pyguide train all"),
        (["--only", "nothing", "--out", "{folder}/x"], "invalid choice: 'nothing'"),
        ([], "one of the arguments --out --resume is required"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(options, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = [option.format(folder=tmp_path) for option in options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "run_folder", None)
        try:
            code = main(["train", "all", *options])
        except SystemExit as error:
            code = error.code
    assert code == 2 and message in capsys.readouterr().err


def test_the_protocol_sweeps_three_rates_and_takes_fresh_seeds(quick_data, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--epochs", "1", "--depth", "3", "--arms", "none", "--workers", "1"]
    assert main(["train", "deep-fcn", "--protocol", *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    rates = list(deep_fcn.Small.protocol["lrs"])
    swept = [run["lr"] for run in results["sweep"]]
    assert len(rates) == 3 and set(rates) <= set(swept) and len(swept) <= 5
    picked = results["learning_rates"]["none"]
    assert picked not in (min(swept), max(swept)) or len(swept) == 5
    assert [run["seed"] for run in results["runs"]] == [1, 2, 3, 4, 5]
    assert {run["lr"] for run in results["runs"]} == {picked}
    again = ["--protocol", "--seeds", "7", "--lrs", "1e-3", *options]
    assert main(["train", "deep-fcn", *again, "--out", str(tmp_path / "other")]) == 0
    config = read_json(tmp_path / "other" / "config.json")["config"]
    assert config["seeds"] == [7] and config["lrs"] == [1e-3] and config["sweep"]


def test_every_experiment_has_a_protocol_of_rates_and_fresh_seeds():
    for experiment in find_experiments().values():
        for setting in experiment.scales.values():
            changes = setting.protocol_changes()
            config = setting.config.changed({"sweep": True, **changes})
            assert isinstance(config, Config) and config.sweep_seed not in config.seeds
            assert len(config.seeds) >= 3 and len(config.lrs) >= 3


def test_the_protocol_without_its_final_runs(quick_data, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--epochs", "1", "--depth", "3", "--arms", "none", "--workers", "1"]
    command = ["train", "deep-fcn", "--protocol", "--sweep-only", *options, "--out", str(out)]
    assert main(command) == 0
    results = read_json(out / "results.json")
    assert 3 <= len(results["sweep"]) <= 5 and results["runs"] == []


@pytest.mark.parametrize(
    ("experiment", "options", "message"),
    [
        ("fcn-init", ["--release-at", "10"], "--release-at: fcn-init aligns for --align-steps"),
        ("fcn-init", ["--weight", "0"], "--weight: fcn-init aligns by the guidance term alone"),
        ("fcn-init", ["--align-lr", "0"], "--align-lr: expected a learning rate above 0"),
        ("fcn-init", ["--vary", "weight=0,1"], "--weight: fcn-init aligns by the guidance term"),
        ("ablations", ["--vary", "distance=cka,rsa"], "sets distance itself"),
    ],
)
def test_options_that_an_arm_cannot_have(experiment, options, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", experiment, *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distance", "ckaa"], "--distance: unknown distance 'ckaa'"),
        (["--pairs", "odd"], "--pairs: pairs must be"),
        (["--guide-mode", "train"], "--guide-mode: expected eval or batch_stats or calibrated"),
        (["--guide-input", "nothing"], "--guide-input: expected data or noise"),
        (["--pairs", "first:15"], "there are 14 pairs"),
        (["--pairs", "last:4", "--depth", "4"], "there are 3 pairs, of 3 hidden layers"),
        (["--release-at", "-1"], "--release-at: expected at least 0"),
        (["--vary", "distance=cka,nothing"], "--distance: unknown distance 'nothing'"),
    ],
)
def test_options_of_guidance_are_checked_before_any_work(options, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "deep-fcn", *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_options_of_guidance_change_the_run(quick_data, tmp_path, capsys):
    losses = {}
    for i, options in enumerate(
        [
            [],
            ["--distance", "debiased_cka"],
            ["--pairs", "first:2"],
            ["--guide-mode", "batch_stats"],
            ["--guide-input", "noise"],
            ["--release-at", "3"],
        ]
    ):
        out = tmp_path / str(i)
        command = ["train", "deep-fcn", "--arms", "untrained", "--seeds", "1", "--depth", "4"]
        command += ["--epochs", "2", "--workers", "1", *options, "--out", str(out)]
        assert main(command) == 0
        (run,) = read_json(out / "results.json")["runs"]
        losses[" ".join(options)] = run["val_loss"]
    assert len(set(losses.values())) == len(losses)
