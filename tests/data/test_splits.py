"""Data in memory as batches."""

from __future__ import annotations

import torch

from pyguide.data.splits import TensorSplit


def test_batches_are_whole_and_in_an_order_that_the_generator_gives():
    split = TensorSplit(torch.arange(10.0).unsqueeze(1), torch.arange(10))

    def epochs(seed, n):
        generator = torch.Generator().manual_seed(seed)
        return [[y.tolist() for _, y, _ in split.shuffled(4, generator)] for _ in range(n)]

    first, second = epochs(1, 2)
    assert [len(batch) for batch in first] == [4, 4]
    assert len({*first[0], *first[1]}) == 8
    assert first != second and epochs(1, 2) == [first, second] != epochs(2, 2)
    for x, y, ids in split.shuffled(4, torch.Generator()):
        assert torch.equal(x[:, 0], y.float()) and torch.equal(y, ids)


def test_evaluation_covers_every_sample_once():
    split = TensorSplit(torch.arange(2500.0), torch.arange(2500))
    batches = list(split.batches())
    assert [len(y) for _, y in batches] == [1000, 1000, 500]
    assert torch.equal(torch.cat([y for _, y in batches]), split.y)
