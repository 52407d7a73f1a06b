"""Data and run folders that the tests of the experiments share."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import threading
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from pyguide.cli import main
from pyguide.experiments import deep_fcn, runner, search
from pyguide.experiments.mnist1d import Data, generate


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


@pytest.fixture(scope="session")
def original_folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["train", "deep-fcn", "--arms", "none", "--seeds", "1", "--depth", "3"]
    command += ["--epochs", "2", "--workers", "1"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_fcn, "generate", lambda: tiny)
        patch.setattr(runner.multiprocessing, "get_context", lambda _: ThreadContext)
        assert main([*command, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def finished_folder(original_folder, jobs_in_threads, tmp_path, capsys):
    capsys.readouterr()
    return shutil.copytree(original_folder, tmp_path / "run")
