"""The data: MNIST-1D as its package generates it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pyguide.experiments.mnist1d import Data


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
