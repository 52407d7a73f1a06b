"""The deep-FCN experiment: data, models, one job, the run folder, its command."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from torch import nn

from pyguide.cli import main
from pyguide.experiments import config as config_module
from pyguide.experiments import deep_fcn, report, runner, search, training
from pyguide.experiments.config import ARMS, QUICK, Config, GuideConfig
from pyguide.experiments.errors import UserError
from pyguide.experiments.files import atomic_write, read_json, write_json
from pyguide.experiments.mnist1d import Data, generate
from pyguide.experiments.models import DeepFCN, ResNet1D
from pyguide.experiments.training import GuideJob, TargetJob
from pyguide.guidance import Guidance

TRAIN = ["train", "deep-fcn"]
TINY = ["--arms", "none", "--depth", "3", "--epochs", "2", "--workers", "1"]


@pytest.fixture(scope="session")
def mnist1d() -> Data:
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    data = generate()
    # The package seeds the global generators; generate() must put them back.
    assert (random.random(), np.random.rand()) == expected
    return data


@pytest.fixture(scope="session")
def tiny() -> Data:
    """Two separable classes in a few batches."""
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(2, size=n)
        x = rng.normal(size=(n, 40)) + 3 * (2 * y[:, None] - 1)
        return x.astype(np.float32), y.astype(np.int64)

    return Data(*split(700), *split(100), *split(200))


@pytest.fixture
def tiny_data(tiny, monkeypatch):
    """The command and the search train on the tiny data."""

    def generate_tiny(*, with_test: bool = True) -> Data:
        return tiny if with_test else replace(tiny, x_test=None, y_test=None)

    monkeypatch.setattr(deep_fcn, "generate", generate_tiny)
    monkeypatch.setattr(search, "generate", generate_tiny)


@pytest.fixture
def one_thread(threads):
    threads(1)


class ThreadContext:
    """Runs jobs in threads: each process would take seconds to import torch.

    One at a time (``--workers 1``), since threads share torch's random stream.
    """

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(target, args, daemon):
        *arguments, sender = args
        # A process has its own copy of the sender too, which the parent's close() leaves open.
        own = Connection(os.dup(sender.fileno()), readable=False)
        return threading.Thread(target=target, args=(*arguments, own), daemon=daemon)


@pytest.fixture
def jobs_in_threads(monkeypatch, one_thread):
    monkeypatch.setattr(runner.multiprocessing, "get_context", lambda _: ThreadContext)


def target_job(**changes) -> TargetJob:
    job = TargetJob(
        arm="none",
        seed=3,
        lr=1e-3,
        depth=6,
        width=32,
        dropout=0.1,
        epochs=2,
        batch_size=128,
        weight=1.0,
        device="cpu",
    )
    return replace(job, **changes)


def run_job(job, data: Data) -> tuple[dict, list[dict]]:
    """The result and the records of a job, without their times."""
    records: list[dict] = []
    result = job.run(data, records.append)
    for record in [result, *records]:
        assert record.pop("seconds") >= 0
    return result, records


# Data


def test_mnist1d_has_the_published_split(mnist1d):
    assert mnist1d.x_train.shape == (3500, 40) and mnist1d.x_train.dtype == np.float32
    assert mnist1d.x_val.shape == (500, 40) and mnist1d.x_test.shape == (1000, 40)
    labels = np.concatenate([mnist1d.y_train, mnist1d.y_val, mnist1d.y_test])
    assert labels.dtype == np.int64 and Counter(labels.tolist()) == dict.fromkeys(range(10), 500)
    rows = np.concatenate([mnist1d.x_train, mnist1d.x_val, mnist1d.x_test])
    assert len(np.unique(rows, axis=0)) == 5000


def test_mnist1d_is_the_default_seeds(mnist1d):
    assert mnist1d.y_train[:12].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1, 6, 9]
    assert mnist1d.y_test[:12].tolist() == [2, 6, 3, 9, 4, 3, 1, 9, 5, 2, 0, 7]
    np.testing.assert_allclose(mnist1d.x_train[0, :3], [-0.332006, -0.47191, -0.778697], rtol=1e-4)


@pytest.mark.slow
def test_a_linear_model_reaches_the_published_32_percent(mnist1d):
    x = torch.from_numpy(np.concatenate([mnist1d.x_train, mnist1d.x_val]))
    y = torch.from_numpy(np.concatenate([mnist1d.y_train, mnist1d.y_val]))
    model = nn.Linear(40, 10)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    prediction = model(torch.from_numpy(mnist1d.x_test)).argmax(1).numpy()
    assert (prediction == mnist1d.y_test).mean() == pytest.approx(0.32, abs=0.03)


def test_data_survive_a_file(tiny, tmp_path):
    replace(tiny, x_test=None, y_test=None).save(tmp_path / "data.npz")
    loaded = Data.load(tmp_path / "data.npz")
    assert np.array_equal(loaded.x_train, tiny.x_train) and loaded.x_test is None
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


# Models


def test_deep_fcn_counts_its_output_layer():
    model = DeepFCN(50)
    kinds = Counter(type(module) for module in model.modules())
    assert kinds[nn.Linear] == 50
    assert kinds[nn.BatchNorm1d] == kinds[nn.ReLU] == kinds[nn.Dropout] == 49
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    by_hand = (40 * 128 + 128) + 48 * (128 * 128 + 128) + 49 * 2 * 128 + (128 * 10 + 10)
    assert sum(p.numel() for p in model.parameters()) == by_hand
    assert model(torch.randn(4, 40)).shape == (4, 10)
    with pytest.raises(ValueError, match="at least 2"):
        DeepFCN(1)


def test_the_guide_gives_14_pairs_from_the_first_to_the_last_hidden_layer():
    x = torch.randn(8, 40)
    guidance = Guidance(DeepFCN(50), ResNet1D(), example=x)
    assert len(guidance.pairs) == 14
    assert guidance.pairs[0] == ("0.0", "stem") and guidance.pairs[-1] == ("48.0", "pool")


@pytest.mark.slow
def test_the_shipped_guide_reaches_95_percent(mnist1d, tmp_path, one_thread):
    job = GuideJob(seed=1, device="cpu", weights=str(tmp_path / "g.pt"), **vars(GuideConfig()))
    result, records = run_job(job, mnist1d)
    assert result["test_accuracy"] >= 0.95
    assert len(records) == GuideConfig().epochs


# One job


@pytest.mark.parametrize("arm", ARMS)
def test_a_job_depends_on_its_fields_alone(arm, tiny, tmp_path, one_thread):
    weights = str(tmp_path / "guide.pt")
    guide = GuideJob(seed=3, epochs=1, lr=1e-2, batch_size=128, device="cpu", weights=weights)
    first_guide = run_job(guide, tiny)
    state = torch.load(weights)
    job = target_job(arm=arm, weights=weights)
    torch.manual_seed(0)
    first = run_job(job, tiny)
    torch.manual_seed(123)
    assert run_job(job, tiny) == first
    assert run_job(replace(job, seed=4), tiny) != first
    assert run_job(guide, tiny) == first_guide
    again = torch.load(weights)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_arms_of_a_seed_start_from_the_same_target_and_batch(tiny, tmp_path, one_thread):
    weights = str(tmp_path / "guide.pt")
    run_job(GuideJob(3, 2, 1e-2, 128, "cpu", weights), tiny)
    runs = {arm: run_job(target_job(arm=arm, weights=weights), tiny)[1] for arm in ARMS}
    # The norm in the first batch is taken before the arms have parted.
    assert len({run[0]["task_grad_norm"] for run in runs.values()}) == 1
    assert len({run[-1]["val_loss"] for run in runs.values()}) == 3
    assert "guidance_loss" not in runs["none"][0]
    assert runs["trained"][0]["guidance_loss"] != runs["untrained"][0]["guidance_loss"]
    for arm in ("trained", "untrained"):
        for record in runs[arm]:
            assert record["guidance_loss"] > 0 and record["guidance_grad_norm"] > 0


def test_guidance_pulls_the_target_towards_the_guide(tiny, one_thread):
    records = run_job(target_job(arm="untrained", epochs=6), tiny)[1]
    assert records[-1]["guidance_loss"] < 0.9 * records[0]["guidance_loss"]


def test_weight_scales_the_guidance_term(tiny, one_thread):
    # A learning rate too small to move the target, so that only the weight differs.
    one, three = (
        run_job(target_job(arm="untrained", lr=1e-12, epochs=1, weight=w), tiny)[1][0]
        for w in (1.0, 3.0)
    )
    assert three["guidance_loss"] == pytest.approx(3 * one["guidance_loss"], rel=1e-5)
    assert three["guidance_grad_norm"] == pytest.approx(3 * one["guidance_grad_norm"], rel=1e-4)


def test_the_test_set_is_scored_once_with_the_best_epochs_weights(tiny, monkeypatch, one_thread):
    scored = []
    evaluate = training._evaluate

    def spy(model, split):
        loss, accuracy = evaluate(model, split)
        scored.append((len(split[1]), loss, {k: v.clone() for k, v in model.state_dict().items()}))
        return loss, accuracy

    monkeypatch.setattr(training, "_evaluate", spy)
    # A large rate, so that the best epoch is not the last.
    result, records = run_job(target_job(lr=0.1, epochs=8), tiny)
    assert [n for n, *_ in scored] == [100] * 8 + [200]
    losses = [record["val_loss"] for record in records]
    best = int(np.argmin(losses))
    assert best != 7
    assert result["best_epoch"] == best + 1 and result["val_loss"] == losses[best]
    assert result["val_accuracy"] == records[best]["val_accuracy"]
    assert result["test_loss"] == scored[-1][1]
    assert all(torch.equal(value, scored[best][2][key]) for key, value in scored[-1][2].items())
    assert not all(torch.equal(value, scored[7][2][key]) for key, value in scored[-1][2].items())


def test_without_a_test_set_nothing_is_scored(tiny, one_thread):
    result, _ = run_job(target_job(), replace(tiny, x_test=None, y_test=None))
    assert not [key for key in result if key.startswith("test")]


def test_divergence_is_an_error_that_says_what_to_do(tiny, one_thread):
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        run_job(target_job(lr=1e30), tiny)


# Report


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


# Files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_config_survives_json():
    config = QUICK.changed({"lr": ["none=0.5"], "arms": ["none"], "seeds": [4, 5]})
    assert config.lr == {**QUICK.lr, "none": 0.5}
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert set(QUICK.changed({"lr": ["0.25"]}).lr.values()) == {0.25}
    assert QUICK.changed({"lr": ["0.25"], "arms": ["none"]}).lr["none"] == 0.25


# Processes


@dataclass(frozen=True)
class ScriptedJob:
    """Reports its epochs, then ends as told."""

    name: str
    end: str = "return"
    epochs: int = 2

    def run(self, data, report):
        for epoch in range(self.epochs):
            report({"epoch": epoch, "threads": torch.get_num_threads()})
        if self.end == "raise":
            raise ValueError("the job's own words")
        if self.end == "die":
            os._exit(3)
        return {"rows": len(data.y_train)}


def test_a_crash_is_named_and_takes_nothing_with_it(tiny, tmp_path, capsys):
    tiny.save(tmp_path / "data.npz")
    tasks = [
        runner.Task("dies", ScriptedJob("arm a seed 1", "die")),
        runner.Task("raises", ScriptedJob("arm b seed 2", "raise"), needs="works"),
        runner.Task("needs dead", ScriptedJob("arm c seed 3"), needs="dies"),
        runner.Task("works", ScriptedJob("arm d seed 4")),
    ]
    epochs: Counter[str] = Counter()
    results: dict[str, dict] = {}
    failed = runner.run_tasks(
        tasks,
        tmp_path / "data.npz",
        workers=2,
        threads=1,
        on_epoch=lambda task, record: epochs.update([f"{task.key} {record['threads']}"]),
        on_result=lambda task, result: results.update({task.key: result}),
        progress=runner.Progress(tasks),
    )
    assert results == {"works": {"rows": 700}}
    assert set(failed) == {"dies", "raises", "needs dead"}
    assert "exit code 3" in failed["dies"]
    assert "ValueError: the job's own words" in failed["raises"]
    assert "needs dies, which failed" in failed["needs dead"]
    assert epochs == {f"{key} 1": 2 for key in ("dies", "raises", "works")}
    messages = capsys.readouterr().err
    assert "FAILED: arm a seed 1: " in messages and "FAILED: arm b seed 2: " in messages


# The command


def test_a_run_folder_and_its_resume(tiny_data, jobs_in_threads, tmp_path, capfd):
    out = tmp_path / "new" / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "2", "--out", str(out)]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert not set(printed.out + printed.err) & {"\r", "\x1b"}
    assert len(printed.err.splitlines()) == 3
    assert "paper: ImageNet, top-5 accuracy (%)" in printed.out

    names = {"config.json", "metrics.jsonl", "results.json", "table.md", "curves.png", "data.npz"}
    assert {path.name for path in out.iterdir()} == {*names, ".lock"}
    config = read_json(out / "config.json")
    assert config["config"]["depth"] == 3 and config["versions"]["torch"] == torch.__version__
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted((m["seed"], m["epoch"]) for m in metrics) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    results = read_json(out / "results.json")
    runs = {run["key"]: run for run in results["runs"]}
    assert list(runs) == ["none-seed1", "none-seed2"] and results["failed"] == {}
    accuracies = [run["test_accuracy"] for run in results["runs"]]
    assert results["summary"]["test_accuracy"]["none"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    assert main(command) == 2
    assert "choose another" in capfd.readouterr().err
    assert read_json(out / "results.json") == results

    # As an interruption leaves it: one job done, the other cut in the middle of a line.
    results["runs"] = [runs["none-seed2"]]
    del results["summary"]
    write_json(out / "results.json", results)
    (out / "table.md").unlink()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"key": "none-se')
    assert main([*TRAIN, "--resume", str(out)]) == 0
    resumed = {run["key"]: run for run in read_json(out / "results.json")["runs"]}
    assert list(resumed) == ["none-seed1", "none-seed2"]
    assert resumed["none-seed2"] == runs["none-seed2"]
    for run in (resumed["none-seed1"], runs["none-seed1"]):
        del run["seconds"]
    assert resumed == runs
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted((m["seed"], m["epoch"]) for m in lines) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (out / "table.md").exists()


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
        (["--device", "warp"], "--device warp: torch cannot use it"),
        (["--device", "meta"], "--device meta: torch cannot use it"),
        (["--device", "cuda:99"], "--device cuda:99: torch cannot use it"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(deep_fcn, "run", lambda *_: pytest.fail("work began"))
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


@pytest.fixture(scope="session")
def original_folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_fcn, "generate", lambda: tiny)
        patch.setattr(runner.multiprocessing, "get_context", lambda _: ThreadContext)
        assert main([*TRAIN, *TINY, "--seeds", "1", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def finished_folder(original_folder, jobs_in_threads, tmp_path, capsys):
    capsys.readouterr()
    return shutil.copytree(original_folder, tmp_path / "run")


def test_a_folder_has_one_writer_at_a_time(finished_folder, capsys):
    writer = deep_fcn.RunFolder.open(finished_folder)
    before = {path.name: path.read_bytes() for path in finished_folder.iterdir()}
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    assert f"another process is writing to {finished_folder}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished_folder.iterdir()} == before
    writer.close()
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0


def replace_by_a_folder(path) -> None:
    path.unlink()
    path.mkdir()


def set_config(path, **changes) -> None:
    config = read_json(path)
    config["config"] |= changes
    write_json(path, config)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", lambda p: p.write_text("{"), "not a run folder"),
        ("config.json", lambda p: p.write_text("[]"), "config.json is of something else"),
        ("config.json", lambda p: write_json(p, {**read_json(p), "experiment": "x"}), "else"),
        ("config.json", lambda p: set_config(p, lr={}), "arm none has no learning rate"),
        ("config.json", lambda p: set_config(p, lr=[1]), "not a run folder"),
        ("config.json", lambda p: set_config(p, depth="3"), "not a run folder"),
        ("results.json", lambda p: p.write_text("[]"), "results.json is of something else"),
        ("results.json", lambda p: p.write_text('{"experiment": "deep-fcn"}'), "lacks 'guides'"),
        ("results.json", lambda p: write_json(p, {**read_json(p), "runs": 1}), "not a run folder"),
        ("results.json", replace_by_a_folder, "not a run folder"),
        ("metrics.jsonl", replace_by_a_folder, "cannot write there"),
        (".lock", replace_by_a_folder, "cannot write there"),
        ("data.npz", lambda p: p.write_text("x"), "data.npz is damaged: delete it"),
        ("data.npz", lambda p: p.write_bytes(b""), "data.npz is damaged"),
        ("data.npz", lambda p: p.write_bytes(p.read_bytes()[:-99]), "data.npz is damaged"),
        ("data.npz", lambda p: p.write_bytes(p.read_bytes()[:99] * 99), "data.npz is damaged"),
        ("data.npz", lambda p: generate_without_test(p), "data.npz is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(name, damage, message, finished_folder, capsys):
    damage(finished_folder / name)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(finished_folder) in error and len(error.splitlines()) == 1


def generate_without_test(path) -> None:
    replace(Data.load(path), x_test=None, y_test=None).save(path)


@pytest.mark.parametrize("line", [b"1\n", b"{}\n", b'{"key": []}\n', b"\xff\n"])
def test_damaged_metrics_are_dropped(line, finished_folder):
    path = finished_folder / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(line + before + line)
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    assert path.read_bytes() == before


def test_a_damaged_result_is_computed_again(finished_folder):
    path = finished_folder / "results.json"
    before = read_json(path)
    write_json(path, {**before, "runs": [1, {"key": "none-seed1"}]})
    assert main([*TRAIN, "--resume", str(finished_folder)]) == 0
    again = read_json(path)
    for results in (before, again):
        del results["runs"][0]["seconds"]
    assert again == before


def test_a_full_disk_is_one_line(tiny_data, jobs_in_threads, tmp_path, capsys, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    command = [*TRAIN, *TINY, "--seeds", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Data, "save", full)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "cannot write there: No space left on device" in error and len(error.splitlines()) == 1
    assert main([*TRAIN, "--resume", str(out)]) == 0


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    find_spec = config_module.importlib.util.find_spec
    monkeypatch.setattr(
        config_module.importlib.util,
        "find_spec",
        lambda name: None if name == "mnist1d" else find_spec(name),
    )
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'pyguide[experiments]'" in capsys.readouterr().err
    assert search.main(["--out", str(tmp_path / "search.json")]) == 2
    assert "pip install 'pyguide[experiments]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_no_extra():
    # None in sys.modules makes an import fail; torch itself imports tqdm where it is there.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'mnist1d', 'tqdm']))\n"
        "from pyguide.cli import main; main(['train', 'deep-fcn', '--help'])"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--help"])
    assert stop.value.code == 0
    assert "pyguide train deep-fcn --quick" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_runs_every_arm(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pyguide", *TRAIN, "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "smoke run" in done.stdout and "smoke run" in done.stderr
    assert not set(done.stdout + done.stderr) & {"\r", "\x1b"}
    results = read_json(out / "results.json")
    assert {run["arm"] for run in results["runs"]} == set(ARMS)
    assert all(run["test_accuracy"] > 0.2 for run in results["runs"])
    assert (out / "guide-seed1.pt").exists()


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
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = out / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"--resume {out}" in error and "Traceback" not in error
    # Python's resource tracker notices only now that its parent has gone.
    wait_until(lambda: not group_exists(process.pid))
    assert not list(out.glob(".*.tmp"))

    config = read_json(out / "config.json")
    config["config"]["epochs"] = 1
    write_json(out / "config.json", config)
    assert main([*TRAIN, "--resume", str(out)]) == 0
    assert len(read_json(out / "results.json")["runs"]) == 2


# The search


def test_the_search_covers_its_grid(tmp_path):
    config = {
        "depths": list(search.DEPTHS),
        "epochs": 1,
        "target": {"width": 128, "dropout": 0.1, "batch_size": 256, "weight": 1.0},
        "guide": vars(GuideConfig()),
    }
    tasks = search._tasks(config, tmp_path / "g.pt", done={"none depth 20 lr 0.001"})
    assert tasks[0].key == "guide"
    grid = {(t.job.arm, t.job.depth, t.job.lr) for t in tasks[1:]}
    assert len(tasks) == 45 and len(grid) == 44 and ("none", 20, 1e-3) not in grid
    assert all((t.needs == "guide") == (t.job.arm == "trained") for t in tasks[1:])


@pytest.mark.slow
def test_the_search_continues_and_never_sees_the_test_set(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "ARMS", ("none",))
    monkeypatch.setattr(search, "LEARNING_RATES", (1e-4, 1e-2))
    out = tmp_path / "results" / "search.json"
    command = ["--out", str(out), "--epochs", "2", "--depths", "2", "--workers", "2"]
    assert search.main(command) == 0
    results = read_json(out)
    assert {run["lr"] for run in results["runs"]} == {1e-4, 1e-2}
    assert not [key for run in results["runs"] for key in run if key.startswith("test")]
    best = min(results["runs"], key=lambda run: run["val_loss"])
    assert results["best"] == {"none depth 2": best}

    lost = results["runs"].pop()
    write_json(out, results)
    assert search.main(command) == 0
    again = read_json(out)["runs"]
    assert again[0] == results["runs"][0]
    assert again[1]["val_loss"] == lost["val_loss"]

    assert search.main([*command[:2], "--epochs", "3", "--depths", "2"]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--depths", "20", "1"], "--depth: expected at least 2, got 1"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--workers", "-1"], "--workers: expected at least 1, got -1"),
    ],
)
def test_the_search_checks_its_numbers(options, message, tmp_path, capsys):
    assert search.main(["--out", str(tmp_path / "s.json"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"config": {}}', '{"config": {}, "runs": [1]}', '{"config": {}, "runs": [{}]}'],
)
def test_the_search_refuses_another_file(text, tmp_path, capsys):
    out = tmp_path / "s.json"
    out.write_text(text)
    for path, message in [(out, "choose another --out"), (out / "s.json", "cannot write there")]:
        assert search.main(["--out", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error and len(error.splitlines()) == 1
    assert out.read_text() == text


def test_device_check_accepts_the_cpu():
    config_module.check_device("cpu")
    with pytest.raises(UserError, match="torch cannot use it"):
        config_module.check_device("nonsense")
