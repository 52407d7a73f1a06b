"""``pyguide compare`` that is interrupted or fails loses nothing; two of them share no folder."""

from __future__ import annotations

import errno
import os
import sys

import pytest
import torch

from pyguide import files
from pyguide.analysis import LayerSimilarity

_ARGV = ["nets.py:Net", "--data", "x.npy", "--batch-size", 10, "--no-plots"]


def test_an_interrupted_comparison_goes_on(here, run, refused, monkeypatch, capsys, loaded):
    assert run(*_ARGV, out="whole") == 0
    (here / "stop").write_text("4 KeyboardInterrupt")
    loaded().Net.calls = 0
    capsys.readouterr()
    assert run(*_ARGV) == 130  # In the third of five batches: the first call lists the layers.
    captured = capsys.readouterr()
    assert "--resume" in captured.err
    assert captured.err.count("\n") == 1
    (here / "stop").unlink()

    assert "unfinished" in refused(*_ARGV)
    assert "batch-size was 10" in refused(*_ARGV[:4], 20, "--resume")
    loaded().Net.calls = 0
    assert run(*_ARGV, "--resume") == 0
    assert loaded().Net.calls == 1 + 1 + 3  # layers, first batch as a check, what was left
    whole, resumed = LayerSimilarity.load("whole"), LayerSimilarity.load("out")
    torch.testing.assert_close(resumed.values, whole.values, rtol=0, atol=1e-12)
    assert sorted(os.listdir("out")) == [
        ".lock",
        "options.json",
        "similarity.json",
        "similarity.npz",
    ]

    assert "holds a finished comparison" in refused(*_ARGV)
    loaded().Net.calls = 0
    assert run(*_ARGV[:-1], "--resume") == 0  # Draws what was left out.
    assert loaded().Net.calls == 0
    assert (here / "out" / "heatmap.png").exists()


@pytest.fixture
def resumed(run, loaded):
    """Runs a command that goes on, and the same as a whole; how often the network was called."""

    def compare():
        assert run(*_ARGV, out="whole") == 0
        loaded().Net.calls = 0
        assert run(*_ARGV, "--resume") == 0
        calls = loaded().Net.calls
        whole, found = LayerSimilarity.load("whole"), LayerSimilarity.load("out")
        torch.testing.assert_close(found.values, whole.values, rtol=0, atol=1e-12)
        assert (found.samples, found.batches) == (50, 5)
        assert not os.path.exists("out/unfinished.pt")
        return calls

    return compare


def test_before_the_first_batch_there_is_nothing_to_resume(here, run, capsys):
    (here / "stop").write_text("2 KeyboardInterrupt")
    assert run(*_ARGV) == 130
    assert capsys.readouterr().err == "pyguide: interrupted\n"
    (here / "stop").unlink()
    assert run(*_ARGV) == 0


def test_an_error_in_a_later_batch_keeps_the_batches_before(here, refused, resumed):
    (here / "stop").write_text("5 KeyError")
    assert "KeyError: 'told to stop' (nets.py, line" in refused(*_ARGV)
    (here / "stop").unlink()
    assert "unfinished" in refused(*_ARGV)
    assert resumed() == 1 + 1 + 2  # layers, first batch as a check, what was left


@pytest.mark.parametrize("file", ["similarity.npz", "similarity.json"])
def test_a_result_that_cannot_be_saved_is_not_lost(refused, resumed, monkeypatch, file):
    replace = os.replace

    def full(source, destination):
        if str(destination).endswith(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "cannot write there: No space left" in refused(*_ARGV)
    assert resumed() == 1 + 1  # layers, first batch as a check


def test_an_interrupt_while_the_result_is_saved(run, resumed, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LayerSimilarity, "save", interrupted)
        assert run(*_ARGV) == 130
    assert "--resume" in capsys.readouterr().err
    assert resumed() == 1 + 1


def test_sums_that_outlived_the_result_are_removed(here, run):
    assert run(*_ARGV) == 0
    (here / "out" / "unfinished.pt").touch()
    assert run(*_ARGV, "--resume") == 0
    assert not (here / "out" / "unfinished.pt").exists()


@pytest.mark.parametrize("name", ["unfinished.pt", "similarity.json"])
def test_a_folder_in_place_of_a_file(here, run, refused, name):
    assert run(*_ARGV) == 0
    (here / "out" / "similarity.json").unlink()
    (here / "out" / name).mkdir()
    error = refused(*_ARGV, "--resume")
    assert "Is a directory" in error and name in error
    assert "damaged" not in error


def test_two_processes_with_one_folder(here, run, refused):
    (here / "out").mkdir()
    with files.lock(here / "out" / ".lock"):
        for options in ([], ["--resume"]):
            assert "another process is writing to out" in refused(*_ARGV, *options)
        assert str(here / "nets.py") not in sys.modules  # before any work
        assert run(*_ARGV, "--list-layers") == 0
    assert run(*_ARGV) == 0
    assert run(*_ARGV, "--resume") == 0


def test_two_processes_that_make_one_folder(here, refused):
    """The other one makes it while this one makes its network, and ends before it is made."""
    (here / "racing.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "Path('out').mkdir()\n"
        "Path('out/similarity.json').touch()\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(48, 4))\n"
    )
    assert "out holds a finished comparison" in refused("racing.py:make", *_ARGV[1:])


def test_the_folder_is_held_while_batches_are_counted(here, refused):
    (here / "watching.py").write_text(
        "from pathlib import Path\n"
        "from pyguide.files import lock\n"
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if Path('out').exists():\n"
        "            lock(Path('out/.lock'))\n"
        "        return super().forward(x)\n"
        "def make():\n"
        "    return Net(nn.Linear(48, 4))\n"
    )
    assert "another process is writing to out" in refused("watching.py:make", *_ARGV[1:])
