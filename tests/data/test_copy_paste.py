"""Copy-paste sequences: their layout, and what a guess is worth."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.tokens import IGNORED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_one_possible_draw():
    # With one symbol and one length nothing is left to chance; 1 is the mark and 2 the blank.
    x, y = CopyPaste(3, 3, symbols=1).sample(2, generator())
    assert x.tolist() == 2 * [[0, 0, 0, 1, 2, 2, 2]]
    assert y.tolist() == 2 * [4 * [IGNORED] + 3 * [0]]


def test_every_row_is_symbols_mark_blanks_and_padding():
    task = CopyPaste(2, 5)
    assert (task.mark, task.blank, task.padding, task.vocabulary) == (10, 11, 12, 13)
    x, y = task.sample(500, generator())
    assert x.shape == y.shape == (500, 11) and x.dtype == y.dtype == torch.int64
    seen = Counter()
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        length = tokens.index(task.mark)
        symbols = tokens[:length]
        rest = 11 - 2 * length - 1
        assert set(symbols) <= set(range(10))
        assert tokens[length + 1 :] == length * [task.blank] + rest * [task.padding]
        assert labels == (length + 1) * [IGNORED] + symbols + rest * [IGNORED]
        seen[length] += 1
    assert set(seen) == {2, 3, 4, 5}


def test_labels_stand_at_blanks_and_nowhere_else_and_zero_is_one():
    task = CopyPaste(8, 12)
    x, y = task.sample(1000, generator())
    assert torch.equal(y != IGNORED, x == task.blank)
    assert y[x == task.blank].unique().tolist() == list(range(10))


def test_lengths_and_symbols_are_equally_likely():
    task = CopyPaste(8, 12)
    x, _ = task.sample(20_000, generator())
    lengths = (x == task.blank).sum(dim=1).bincount(minlength=14)
    assert lengths[:8].sum() == lengths[13:].sum() == 0
    # Five standard deviations of a binomial count.
    assert (lengths[8:13] - 4000).abs().max() < 5 * math.sqrt(20_000 * 0.2 * 0.8)
    for position in (0, 7, 11):
        symbols = x[:, position][x[:, position] < 10]
        n = len(symbols)
        counts = symbols.bincount(minlength=10)
        assert (counts - n / 10).abs().max() < 5 * math.sqrt(n * 0.1 * 0.9)


def test_splits_depend_on_their_seed_alone():
    task, sizes = CopyPaste(2, 6), (50, 30, 20)
    torch.manual_seed(1)
    first = task.splits(sizes, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, other = task.splits(sizes, seed=3), task.splits(sizes, seed=4)
    assert first.classes == 10
    for name, size in zip(("train", "val", "test"), sizes, strict=True):
        own, same, different = (getattr(splits, name) for splits in (first, again, other))
        assert len(own) == size
        assert torch.equal(own.x, same.x) and torch.equal(own.y, same.y)
        assert not torch.equal(own.x, different.x)
    assert not torch.equal(first.train.x[:20], first.test.x)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("guess", range(10))
def test_a_guess_is_right_one_time_in_ten(guess):
    _, y = CopyPaste(8, 12).sample(5000, generator())
    labels = y[y != IGNORED]
    share = (labels == guess).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * math.sqrt(0.1 * 0.9 / len(labels)))


def test_the_papers_baseline_is_chance_as_its_code_counts():
    """That ignores symbol 0, and counts an end mark, which is known from the number of blanks.

    Then a guess has 14.29 % and cross-entropy 2.119 at the paper's lengths; it reports 14.35 %.
    """
    sequences = 20_000
    _, y = CopyPaste(20, 40).sample(sequences, generator())
    nonzero = y[y > 0]
    counted = len(nonzero) + sequences
    # Of nine equally likely symbols any guess is right as often; the end mark always.
    accuracies = [((nonzero == s).sum().item() + sequences) / counted for s in range(1, 10)]
    loss = len(nonzero) / counted * math.log(9)
    expected = (1 + 27 / 9) / 28, 27 / 28 * math.log(9)
    assert expected == pytest.approx((0.1429, 2.119), abs=5e-4)
    assert accuracies == pytest.approx([expected[0]] * 9, abs=3e-3)
    assert loss == pytest.approx(expected[1], abs=3e-3)
