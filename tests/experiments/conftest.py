"""Data and run folders that the tests of the experiments share."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from pyguide.cli import main
from pyguide.data.splits import Splits, TensorSplit
from pyguide.experiments.harness import mnist1d, processes


@pytest.fixture(scope="session")
def tiny() -> Splits:
    """Two separable classes in a few batches."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> TensorSplit:
        y = torch.randint(2, (n,), generator=generator)
        x = torch.randn(n, 40, generator=generator) + 3.0 * (2 * y[:, None] - 1)
        return TensorSplit(x, y)

    return Splits(split(700), split(100), split(200), classes=2)


@pytest.fixture
def tiny_data(tiny, monkeypatch):
    """The experiments on MNIST-1D train on the tiny data."""
    monkeypatch.setattr(mnist1d, "mnist1d", lambda cache, device: tiny)


@pytest.fixture
def one_thread(threads):
    threads(1)


class ThreadContext:
    """Runs jobs in threads: each process would take seconds to import torch.

    One at a time (``--workers 1``), since threads share torch's random stream.
    """

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(target, args):
        *arguments, sender = args
        # A process has its own copy of the sender too, which the parent's close() leaves open.
        own = Connection(os.dup(sender.fileno()), readable=False)
        return threading.Thread(target=target, args=(*arguments, own), daemon=True)


@pytest.fixture
def jobs_in_threads(monkeypatch, one_thread):
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda _: ThreadContext)


class Notes:
    """A job's report, kept."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def restored(self, records: list[dict[str, Any]]) -> None:
        self.records += records

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def new_report():
    return Notes


@pytest.fixture(scope="session")
def original_folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["train", "deep-fcn", "--arms", "none", "--seeds", "1", "--depth", "3"]
    command += ["--epochs", "2", "--workers", "1"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist1d, "mnist1d", lambda cache, device: tiny)
        patch.setattr(processes.multiprocessing, "get_context", lambda _: ThreadContext)
        assert main([*command, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def finished_folder(original_folder, tiny_data, jobs_in_threads, tmp_path, capsys):
    """A run of one arm and one seed, on the tiny data."""
    capsys.readouterr()
    return shutil.copytree(original_folder, tmp_path / "run")
