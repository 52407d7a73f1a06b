"""A result to save, load and draw; what tests of ``pyguide compare`` run it on."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyguide.analysis.similarity import LayerSimilarity
from pyguide.cli import main

_NETWORKS = '''
import builtins
import sys
from pathlib import Path
from torch import nn
from sizes import FEATURES

class Net(nn.Module):
    """Its modules are registered in another order than they run in."""

    calls = 0

    def __init__(self, width=16, classes=3):
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.act = nn.ReLU()
        self.body = nn.Linear(width, width)
        self.stem = nn.Linear(FEATURES, width)

    def forward(self, x):
        Net.calls += 1
        if Path("stop").exists():
            call, error = Path("stop").read_text().split()
            if Net.calls == int(call):
                raise getattr(builtins, error)("told to stop")
        return self.head(self.act(self.body(self.act(self.stem(x.flatten(1))))))

def broken():
    raise KeyError("no such size")

def leaves():
    sys.exit(3)

class Leaves(nn.Linear):
    def __init__(self):
        super().__init__(48, 4)

    def forward(self, x):
        sys.exit("not today")

class Picky(nn.Linear):
    def __init__(self):
        super().__init__(48, 4)

    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        raise LookupError("no such state")

def tokens():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(48 * 4, 4))

def number():
    return 3

def in_place():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(48, 4))

def meta():
    return nn.Linear(48, 4, device="meta")

def constant():
    return nn.Sequential(nn.Linear(48, 4), nn.Threshold(1e9, 0.0), nn.Linear(4, 2))
'''


@pytest.fixture
def new_similarity():
    """Makes a result of the given values, with other fields changed."""

    def make(values: list[list[float]] | Tensor, **changes: Any) -> LayerSimilarity:
        values = torch.as_tensor(values, dtype=torch.float64)
        rows, columns = values.shape
        similarity = LayerSimilarity(
            values=values,
            rows=tuple(f"layer{i}.conv" for i in range(rows)),
            columns=tuple(f"blocks.{i}" for i in range(columns)),
            row_shapes=((8, 4, 4),) * rows,
            column_shapes=((16,),) * columns,
            names=("cnn", "mlp"),
            samples=1000,
            batches=4,
            debiased=True,
            degenerate_rows=(),
            degenerate_columns=(),
            batch_size=256,
        )
        return dataclasses.replace(similarity, **changes)

    return make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with networks and data of 48 features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sizes", raising=False)
    (tmp_path / "nets.py").write_text(_NETWORKS)
    (tmp_path / "sizes.py").write_text("FEATURES = 48\n")
    inputs = np.random.default_rng(0).normal(size=(50, 48))
    np.save(tmp_path / "x.npy", inputs)
    torch.save(torch.from_numpy(inputs), tmp_path / "x.pt")
    return tmp_path


@pytest.fixture
def run(here):
    def compare(*argv, out="out"):
        return main(["compare", *map(str, argv), "--out", out])

    return compare


@pytest.fixture
def refused(run, capsys):
    """Runs a command that must be refused; gives its one line of explanation."""

    def compare(*argv, **options):
        capsys.readouterr()
        assert run(*argv, **options) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("pyguide: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return compare


@pytest.fixture
def loaded(here):
    """Gives the module that the command made of nets.py."""
    return lambda: sys.modules[str(here / "nets.py")]
