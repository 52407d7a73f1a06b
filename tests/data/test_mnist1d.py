"""MNIST-1D: what it is, and its copy in the run folder."""

from __future__ import annotations

import builtins
import random

import numpy as np
import pytest
import torch

from pyguide.data import mnist1d as module
from pyguide.data.mnist1d import VALIDATION_SIZE, generate, mnist1d
from pyguide.errors import UserError

pytestmark = pytest.mark.xdist_group("mnist1d")  # so that it is generated once


@pytest.fixture(scope="module")
def raw():
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    data = generate()
    # The package seeds the global generators; generate() must put them back.
    assert (random.random(), np.random.rand()) == expected
    return data


def test_mnist1d_is_the_packages_data(raw, tmp_path, monkeypatch):
    from mnist1d.data import get_dataset_args, make_dataset

    monkeypatch.setattr(module, "generate", lambda: raw)
    data = mnist1d(tmp_path)
    direct = make_dataset(get_dataset_args())
    train_x = torch.cat([data.train.x, data.val.x])
    train_y = torch.cat([data.train.y, data.val.y])
    assert torch.equal(train_x, torch.from_numpy(direct["x"]).float())
    assert torch.equal(train_y, torch.from_numpy(direct["y"]).long())
    assert torch.equal(data.test.x, torch.from_numpy(direct["x_test"]).float())
    assert torch.equal(data.test.y, torch.from_numpy(direct["y_test"]).long())
    assert [len(s) for s in (data.train, data.val, data.test)] == [3500, VALIDATION_SIZE, 1000]
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64
    assert set(data.val.y.tolist()) == set(range(data.classes))


def test_it_is_made_once_and_again_where_it_is_damaged(raw, tmp_path, monkeypatch):
    made = []

    def generate_spy():
        made.append(1)
        return raw

    monkeypatch.setattr(module, "generate", generate_spy)
    for _ in range(2):
        first = mnist1d(tmp_path / "data")
    assert len(made) == 1
    path = tmp_path / "data" / "mnist1d.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", b"x", bytes(content[:-99])):
        path.write_bytes(damaged)
        assert torch.equal(mnist1d(tmp_path / "data").train.x, first.train.x)
    torch.save({"x": torch.ones(1)}, path)
    assert torch.equal(mnist1d(tmp_path / "data").test.x, first.test.x)
    assert len(made) == 6


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("mnist1d"):
            raise ImportError("no mnist1d here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=r"pip install 'pyguide\[experiments\]'"):
        generate()
