"""``pyguide compare`` on tiny networks and data: what it writes, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyguide.analysis import LayerSimilarity, compare_networks

_ORDER = ["stem", "act:0", "body", "act:1", "head"]


def write_images(folder, count):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(256, size=(6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    # What macOS and image viewers leave.
    (folder / ".thumbnails").mkdir()
    for name in ("._0.png", ".thumbnails/0.png"):
        (folder / name).write_bytes(b"no image")


def test_two_networks_in_one_folder_of_results(loaded, run, capsys):
    before = torch.get_num_threads(), torch.get_rng_state()
    assert run("nets.py:Net", "nets.py:Net", "--data", "x.npy", "--threads", 1) == 0
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    names = [".lock", "best_matches.png", "heatmap.png", "options.json"]
    assert sorted(os.listdir("out")) == [*names, "similarity.json", "similarity.npz"]
    similarity = LayerSimilarity.load("out")
    assert list(similarity.rows) == list(similarity.columns) == _ORDER
    assert similarity.debiased
    assert (similarity.samples, similarity.batch_size) == (50, 50)
    x = torch.from_numpy(np.load("x.npy")).float()
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(loaded().Net())
    expected = compare_networks(*networks, [x])
    torch.testing.assert_close(similarity.values, expected.values, rtol=0, atol=1e-5)

    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("nets.py:Net (first)")
    assert "nets.py:Net (second)" in lines[0]
    assert lines[1] == "debiased CKA, 50 samples in batches of 50"
    match = similarity.best_matches()[0][0]
    assert f"stem   {match.value:7.4f}  {match.best}" in lines
    assert os.path.join("out", "heatmap.png") in lines


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("x.pt", []),
        ("flat", ["--image-size", 4]),
        ("classes", ["--image-size", 4]),
        ("classes", ["--image-size", 4, "--workers", 1]),
    ],
)
def test_kinds_of_data(here, run, data, options):
    write_images(here / "flat", 10)
    write_images(here / "classes" / "cat", 6)
    write_images(here / "classes" / "dog" / "small", 4)
    argv = ["nets.py:Net", "--data", data, "--samples", 10, "--batch-size", 5, "--no-plots"]
    assert run(*argv, *options) == 0
    similarity = LayerSimilarity.load("out")
    assert similarity.with_itself
    assert (similarity.samples, similarity.batches, similarity.batch_size) == (10, 2, 5)
    assert similarity.row_shapes[0] == (16,)
    assert similarity.values.diagonal().tolist() == pytest.approx([1.0] * 5)
    assert not os.path.exists("out/heatmap.png")


def test_a_built_in_set(run):
    spec = "pyguide.experiments.networks:DeepFCN?depth=3&in_features=784&width=8"
    argv = ["--data", "mnist5000", "--samples", 64, "--no-plots"]
    assert run(spec, *argv, "--layers", "*.0", "2") == 0
    similarity = LayerSimilarity.load("out")
    assert similarity.rows == ("0.0", "1.0", "2")
    assert similarity.samples == 64


def test_the_seed_settles_the_order(loaded, run):
    assert run("nets.py:Net", "--data", "x.npy", "--list-layers") == 0
    torch.save(loaded().Net().state_dict(), "w.pt")
    values = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        argv = ["--data", "x.npy", "--batch-size", 10, "--no-plots", "--seed", seed]
        assert run("nets.py:Net", *argv, "--weights", "w.pt", out=out) == 0
        values.append(LayerSimilarity.load(out).values)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_other_weights_in_the_same_file_are_another_comparison(loaded, run, refused):
    assert run("nets.py:Net", "--data", "x.npy", "--list-layers") == 0
    argv = ["nets.py:Net", "--data", "x.npy", "--weights", "w.pt", "--no-plots"]
    torch.save(loaded().Net().state_dict(), "w.pt")
    assert run(*argv) == 0
    assert run(*argv, "--resume") == 0
    torch.save(loaded().Net().state_dict(), "w.pt")
    os.utime("w.pt", (0, 0))
    assert "weights-file was " in refused(*argv, "--resume")


def test_one_architecture_with_two_files_of_weights(loaded, run, refused):
    """Also from a checkpoint of a wrapped network, and layers chosen by globs."""
    assert run("nets.py:Net?width=8", "--data", "x.npy", "--no-plots") == 0
    first, second = loaded().Net(8), loaded().Net(8)
    torch.save(first.state_dict(), "a.pt")
    wrapped = {f"module._orig_mod.{name}": value for name, value in second.state_dict().items()}
    torch.save({"epoch": 3, "model": wrapped}, "b.pt")
    argv = ["nets.py:Net?width=8", "--weights", "a.pt", "--second-weights", "b.pt"]
    argv += ["--data", "x.npy", "--layers", "s*", "act", "--second-layers", "h*", "--no-plots"]
    assert run(*argv, "--batch-size", 20, "--samples", 45, "--biased", out="two") == 0
    similarity = LayerSimilarity.load("two")
    assert similarity.names == ("nets.py:Net?width=8 (a.pt)", "nets.py:Net?width=8 (b.pt)")
    assert similarity.rows == ("stem", "act:0", "act:1")
    assert similarity.columns == ("head",)
    assert (similarity.samples, similarity.batches) == (45, 3)
    x = torch.from_numpy(np.load("x.npy")).float()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:45]
    expected = compare_networks(
        first,
        second,
        x[order].split(20),
        layers=["stem", "act"],
        second_layers="head",
        debiased=False,
    )
    torch.testing.assert_close(similarity.values, expected.values, rtol=0, atol=1e-6)


def test_quiet_prints_nothing(run, capsys):
    assert run("nets.py:constant", "--data", "x.npy", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("nets.py:constant", "--data", "x.npy", "--resume", "--no-plots") == 0
    assert "without variation over the data in nets.py:constant: 1, 2" in capsys.readouterr().out


def test_a_last_batch_that_is_too_small_is_told_in_one_line(run, capsys):
    assert run("nets.py:Net", "--data", "x.npy", "--batch-size", 16, "--no-plots") == 0
    err = capsys.readouterr().err
    assert err.startswith("pyguide: warning: ")
    assert err.count("\n") == 1
    assert LayerSimilarity.load("out").samples == 48


def test_layers_are_listed_as_they_are_named(here, run, capsys):
    assert run("nets.py:Net", "nets.py:constant", "--data", "x.npy", "--list-layers") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["nets.py:Net", *_ORDER, "nets.py:constant", *"012"]
    assert lines[2] == ["act:0", "ReLU", "(16,)"]
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nets.py"], "module:factory"),
        (["no_such_module:make"], "no module no_such_module"),
        (["other.py:Net"], "no such file"),
        (["nets.py:Nett"], "has no Nett"),
        (["nets.py:broken"], "KeyError: 'no such size' (nets.py, line"),
        (["nets.py:number"], "it gave int"),
        (["nets.py:leaves"], "SystemExit: 3 (nets.py, line"),
        (["leaving.py:make"], "importing leaving.py raised SystemExit"),
        (["nets.py:Leaves"], "SystemExit: not today (nets.py, line"),
        (["nets.py:in_place", "nets.py:Net"], "the first network changed its input in place"),
        (["nets.py:meta"], "nets.py:meta cannot be moved to cpu"),
        (["nets.py:Net?width"], "?name=value"),
        (["nets.py:Net?depth=3"], "unexpected keyword argument 'depth'"),
        (["faulty.py:make"], "importing faulty.py raised ModuleNotFoundError"),
        (["nets.py:Net", "--data", "nowhere"], "mnist5000, mnist1d"),
        (["nets.py:Net", "--data", "empty"], "no images"),
        (["nets.py:Net", "--data", "damaged", "--image-size", 4], "cannot be read as an image"),
        (["nets.py:Net", "--data", "text.npy"], "cannot be read as an array"),
        (["nets.py:Net", "--data", "dict.pt"], "found dict"),
        (["nets.py:Net", "--data", "sparse.pt"], "dense tensor (samples, ...), found a sparse_coo"),
        (["nets.py:Net", "--data", "meta.pt"], "found a meta tensor, without values"),
        (["nets.py:Net", "--data", "x" * 300], "File name too long"),
        (
            ["nets.py:tokens", "--data", "tokens.pt", "--batch-size", 10],
            "IndexError: index out of range in self",
        ),
        (["nets.py:Net", "--data", "wide.npy"], "nets.py:Net cannot take samples of shape (7,)"),
        (["nets.py:Net", "--data", "few.npy"], "3 samples, at least 4"),
        (["nets.py:Net", "--samples", 51], "has 50"),
        (["nets.py:Net", "--batch-size", 3], "--batch-size: expected at least 4, got 3"),
        (["nets.py:Net", "--batch-size", 10**30], "--batch-size: expected at most"),
        (["nets.py:Net", "--samples", 10**30], "--samples: expected at most"),
        (["nets.py:Net", "--image-size", 10**30], "--image-size: expected at most"),
        (["nets.py:Net", "--threads", 10**30], "--threads: expected at most"),
        (["nets.py:Net", "--workers", 10**6], "--workers: expected at most"),
        (["nets.py:Net", "nets.py:Net", "--seed", 2**64 - 1], "--seed: expected at most"),
        (["nets.py:Net", "--seed", -(2**63) - 1], "--seed: expected at least"),
        (["nets.py:Net", "--layers", "[z-a]"], "'[z-a]' is no glob: bad character range"),
        (["nets.py:Net", "--layers", "stm"], "did you mean 'stem'"),
        (["nets.py:Net", "--layers", "x*"], "no layer of the nets.py:Net network matches 'x*'"),
        (["nets.py:Net", "--second-layers", "stem"], "--second-layers needs a SECOND"),
        (["nets.py:Net", "--device", "nonsense"], "--device nonsense"),
        (["nets.py:Net", "--weights", "nowhere.pt"], "nowhere.pt: no such file"),
        (["nets.py:Net", "--weights", "pickled.pt"], "holds more than tensors"),
        (["nets.py:Net", "--weights", "text.npy"], "text.npy: "),
        (["nets.py:Net", "--weights", "x.pt"], "no state_dict"),
        (["nets.py:Net", "--weights", "nowhere.safetensors"], "nowhere.safetensors: "),
        (["nets.py:Net", "--weights", "empty"], "empty: a folder, not a file"),
        (["nets.py:Net", "--weights", "folder.safetensors"], "a folder, not a file"),
        (["nets.py:Net", "--weights", "x" * 300], "File name too long"),
        (["nets.py:Net", "--weights", "numbered.pt"], "names of a state_dict are strings, found 1"),
        (["nets.py:Net", "--weights", "kinds.pt"], "stem.bias (int), stem.weight (a sparse_coo"),
        (["nets.py:Picky", "--weights", "picky.pt"], "LookupError: no such state (nets.py, line"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(here, refused, argv, message):
    (here / "empty").mkdir()
    (here / "damaged").mkdir()
    for i in range(4):
        (here / "damaged" / f"{i}.png").write_bytes(b"no image")
    (here / "faulty.py").write_text("import no_such_module")
    (here / "text.npy").write_text("not an array")
    torch.save({"a": torch.ones(3)}, here / "dict.pt")
    torch.save(nn.Linear(2, 2), here / "pickled.pt")
    (here / "folder.safetensors").mkdir()
    (here / "leaving.py").write_text("raise SystemExit")
    torch.save(torch.eye(50).to_sparse(), here / "sparse.pt")
    torch.save(torch.ones(50, 48, device="meta"), here / "meta.pt")
    # Fit for the first batch, and for the two samples that the layers are listed from.
    torch.save(torch.cat([torch.ones(45, 48).long(), torch.full((5, 48), 10)]), here / "tokens.pt")
    torch.save({1: torch.ones(3)}, here / "numbered.pt")
    state = {"stem.bias": 3, "stem.weight": torch.ones(16, 48).to_sparse()}
    torch.save(state, here / "kinds.pt")
    picky = {"weight": torch.ones(4, 48), "bias": torch.ones(4), "_extra_state": {}}
    torch.save(picky, here / "picky.pt")
    np.save(here / "wide.npy", np.zeros((50, 7)))
    np.save(here / "few.npy", np.zeros((3, 48)))
    data = [] if "--data" in argv else ["--data", "x.npy"]
    assert message in refused(*argv, *data)
    assert not (here / "out" / "similarity.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_turns_out_damaged_is_named(here, refused, workers):
    write_images(here / "images", 9)
    (here / "images" / "8.png").write_bytes(b"no image")
    argv = ["--data", "images", "--image-size", 4, "--workers", workers]
    for _ in range(2):  # Workers of the first call may outlive it, but hold the folder no more.
        assert "images/8.png: cannot be read as an image" in refused("nets.py:Net", *argv)


def test_weights_that_do_not_fit_are_named(loaded, run, refused):
    assert run("nets.py:Net", "--data", "x.npy", "--list-layers") == 0
    state = loaded().Net(classes=5).state_dict()
    state["extra.weight"] = state.pop("stem.bias")
    torch.save({"state_dict": state}, "w.pt")
    error = refused("nets.py:Net", "--data", "x.npy", "--weights", "w.pt")
    assert "it lacks stem.bias; the network lacks extra.weight; other shapes head.weight" in error
    assert "head.bias (5,), not (3,)" in error


def test_weights_of_a_safetensors_file(loaded, run):
    safetensors = pytest.importorskip("safetensors.torch")
    assert run("nets.py:Net", "--data", "x.npy", "--list-layers") == 0
    network = loaded().Net()
    safetensors.save_file(network.state_dict(), "w.safetensors")
    argv = ["--data", "x.npy", "--weights", "w.safetensors", "--no-plots"]
    assert run("nets.py:Net", *argv) == 0
    x = torch.from_numpy(np.load("x.npy")).float()
    expected = compare_networks(network, data=[x])
    torch.testing.assert_close(LayerSimilarity.load("out").values, expected.values)


def test_what_is_not_installed_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    weights = ["--weights", "w.safetensors"]
    assert "pip install safetensors" in refused("nets.py:Net", "--data", "x.npy", *weights)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'pyguide[compare]'" in refused("nets.py:Net", "--data", "x.npy")


@pytest.mark.parametrize("out", ["file", "x" * 300])
def test_a_folder_that_cannot_be_written(here, refused, out):
    (here / "file").touch()
    assert "cannot write there" in refused("nets.py:Net", "--data", "x.npy", out=out)
    assert str(here / "nets.py") not in sys.modules


def test_how_layers_are_listed_is_told_for_the_command(refused):
    for path in ("x*", "%"):
        error = refused("nets.py:Net", "--data", "x.npy", "--layers", path)
        assert "--list-layers" in error
        assert "pyguide.list_layers" not in error
