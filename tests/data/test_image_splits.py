"""An image folder as training, validation and test data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pyguide.data.image_splits import image_splits
from pyguide.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes, of 41 and 3 training images, and of one test image each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, name, n in [("train", "a", 41), ("train", "b", 3), ("val", "a", 1), ("val", "b", 1)]:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(n):
            array = rng.integers(256, size=(12, 10, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / f"{i:02}.png")
    return root


def epoch(split, seed, batch_size=4):
    generator = torch.Generator().manual_seed(seed)
    return [(b.x, b.y) for b in split.shuffled(batch_size, generator)], generator


def test_one_in_twenty_images_of_a_class_is_held_out_and_never_trained_on(root):
    data = image_splits(root, 8, "cpu", 0)
    assert data.classes == 2
    assert [len(s) for s in (data.train, data.val, data.test)] == [44 - 3, 3, 2]
    labels = torch.cat([y for _, y in data.val.batches()])
    assert labels.tolist() == [0, 0, 1]
    assert not set(data.train.indices) & set(data.val.indices)
    # The same in every run, and not just the first or the last ones by name.
    again = image_splits(root, 8, "cpu", 0)
    assert np.array_equal(again.val.indices, data.val.indices)
    assert set(data.val.indices[:2]) not in ({0, 1}, {39, 40})


def test_an_epoch_is_whole_batches_of_the_training_images(root):
    data = image_splits(root, 8, "cpu", 0)
    batches, _ = epoch(data.train, seed=1)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 8, 8)] * 10
    assert sum(len(y) for _, y in batches) == 40


@pytest.mark.parametrize("loaders", [0, 2])
def test_what_is_drawn_depends_on_the_generator_alone(root, loaders):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, generator = epoch(image_splits(root, 8, "cpu", 0).train, seed=1)
    split = image_splits(root, 8, "cpu", loaders).train
    same, _ = epoch(split, seed=1)
    next_epoch = list(split.shuffled(4, generator))
    assert torch.equal(torch.get_rng_state(), before)
    for (x, y), (x_again, y_again) in zip(first, same, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    assert not torch.equal(first[0][0], next_epoch[0].x) and next_epoch[0].ids is None


def test_evaluation_images_are_not_augmented(root):
    data = image_splits(root, 8, "cpu", 0)
    (first,), (second,) = list(data.val.batches()), list(data.val.batches())
    assert torch.equal(first[0], second[0])


def test_a_missing_part_is_named(root, tmp_path):
    with pytest.raises(UserError, match=r"train: no such folder"):
        image_splits(tmp_path, 8, "cpu", 0)
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"they differ in b"):
        image_splits(tmp_path, 8, "cpu", 0)
