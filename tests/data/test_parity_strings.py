"""Bit strings and their parities."""

from __future__ import annotations

import math

import torch

from pyguide.data.parity import PADDING, VOCABULARY, are_among, bit_strings, parity_splits


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def odd(row: list[int]) -> int:
    result = 0
    for token in row:
        if token == 1:
            result = 1 - result
    return result


def test_labels_equal_a_slow_count():
    lengths = torch.arange(1, 41).repeat(20)
    x, y = bit_strings(lengths, generator())
    assert x.shape == (800, 40) and y.shape == (800,) and x.dtype == y.dtype == torch.int64
    for row, label, length in zip(x.tolist(), y.tolist(), lengths.tolist(), strict=True):
        assert set(row[:length]) <= {0, 1} and row[length:] == (40 - length) * [PADDING]
        assert label == odd(row[:length])
    assert set(y.tolist()) == {0, 1} and VOCABULARY == 3


def test_what_would_stand_in_the_padding_counts_not():
    # The same draws, cut at other lengths.
    x, y = bit_strings(torch.full((300,), 3), generator(), width=20)
    whole, parity = bit_strings(torch.full((300,), 20), generator())
    assert torch.equal(x[:, :3], whole[:, :3]) and (x[:, 3:] == PADDING).all()
    assert torch.equal(y, whole[:, :3].sum(dim=1) % 2) and not torch.equal(y, parity)


def test_bits_and_labels_are_balanced():
    x, y = bit_strings(torch.full((10_000,), 12), generator())
    tolerance = 5 * 0.5 / math.sqrt(10_000)
    assert (x.double().mean(dim=0) - 0.5).abs().max() < tolerance
    assert abs(y.double().mean().item() - 0.5) < tolerance


def test_every_length_of_the_splits_is_equally_likely():
    splits = parity_splits(2, 6, (20_000, 300, 200), seed=0)
    assert splits.classes == 2
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [20_000, 300, 200]
    for split in (splits.train, splits.val, splits.test):
        lengths = (split.x != PADDING).sum(dim=1)
        assert split.x.size(1) == 6 and lengths.unique().tolist() == [2, 3, 4, 5, 6]
        assert split.y.tolist() == [odd(row) for row in split.x.tolist()]
    counts = (splits.train.x != PADDING).sum(dim=1).bincount()[2:]
    assert (counts - 4000).abs().max() < 5 * math.sqrt(20_000 * 0.2 * 0.8)


def test_splits_depend_on_their_seed_alone():
    torch.manual_seed(1)
    first = parity_splits(2, 30, (60, 40, 30), seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = parity_splits(2, 30, (60, 40, 30), seed=3)
    other = parity_splits(2, 30, (60, 40, 30), seed=4)
    for name in ("train", "val", "test"):
        own, same, different = (getattr(splits, name) for splits in (first, again, other))
        assert torch.equal(own.x, same.x) and torch.equal(own.y, same.y)
        assert not torch.equal(own.x, different.x)
    assert not torch.equal(first.train.x[:30], first.test.x)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_strings_are_told_from_longer_and_from_padded_ones():
    x = torch.tensor([[0, 1, 2, 2], [0, 1, 0, 2], [0, 1, 0, 0], [1, 2, 2, 2]])
    others = torch.tensor([[0, 1, 2], [0, 0, 1], [1, 2, 2]])
    assert are_among(x, others).tolist() == [True, False, False, True]
    x, _ = bit_strings(torch.full((64,), 6), generator())
    y, _ = bit_strings(torch.full((64,), 6), generator(1), width=9)
    expected = [any(torch.equal(row, other[:6]) for other in y) for row in x]
    assert are_among(x, y).tolist() == expected and 0 < sum(expected) < 64
