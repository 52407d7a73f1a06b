"""Words, vocabulary and windows of text."""

from __future__ import annotations

import pytest
import torch

from pyguide.data.text import UNKNOWN, cut, encode, text_splits, windows, words_of
from pyguide.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Who's there?\n  Nay, answer ME:",
            ["who's", "there", "?", "nay", ",", "answer", "me", ":"],
        ),
        ("love-song  o’er 'tis well-", ["love-song", "o’er", "tis", "well"]),
        ("Act 2, 1599: §7 _so_", ["act", "2", ",", "1599", ":", "7", "so"]),
        ("Élan ÆGIR", ["élan", "ægir"]),
        ("(--*[]\"'", []),
        ("one.two!three;", ["one", ".", "two", "!", "three", ";"]),
    ],
)
def test_words_of(text, words):
    assert words_of(text) == words


def parts(train, val="", test=""):
    return {"train": train.split(), "val": val.split(), "test": test.split()}


def test_the_most_frequent_words_are_numbered_first_and_ties_by_the_alphabet():
    corpus, words = encode(parts("c b b a a d d d", "d x a", "c"), vocabulary=4)
    assert words == [UNKNOWN, "d", "a", "b"]
    assert corpus["train"].tolist() == [0, 3, 3, 2, 2, 1, 1, 1]
    # Of other parts only words of training are known.
    assert corpus["val"].tolist() == [1, 0, 2] and corpus["test"].tolist() == [0]
    assert all(ids.dtype == torch.int64 for ids in corpus.values())


def test_a_text_with_the_unknown_word_gives_it_the_number_0():
    corpus, words = encode(parts("<unk> <unk> <unk> a b a", "<unk> b"), vocabulary=10)
    assert words == [UNKNOWN, "a", "b"]
    assert corpus["train"].tolist() == [0, 0, 0, 1, 2, 1] and corpus["val"].tolist() == [0, 2]


def test_a_part_without_words_stays_a_tensor_of_numbers():
    corpus, _ = encode(parts("a b"), vocabulary=10)
    assert corpus["val"].dtype == torch.int64 and len(corpus["val"]) == 0


def test_no_words_to_train_on():
    with pytest.raises(UserError, match="--data: the text has no words"):
        encode(parts("", "a", "b"), vocabulary=10)


@pytest.mark.parametrize(("length", "used"), [(13, 12), (14, 12), (16, 12), (17, 16), (5, 4)])
def test_windows_predict_every_word_once_and_share_none(length, used):
    x, y = windows(torch.arange(length), 4)
    assert x.shape == y.shape == (used // 4, 4)
    # Words in order: the first is not predicted, and each other one once.
    assert y.flatten().tolist() == list(range(1, used + 1))
    assert x.flatten().tolist() == list(range(used))


@pytest.mark.parametrize(
    ("short", "message"),
    [
        ("val", "the validation part of the text has 4 words, and a window of 4 needs 5"),
        ("test", "the test part of the text has 4 words.*give a smaller --context, or more text"),
        ("train", "the training part of the text has 4 words.*or larger --train-words"),
    ],
)
def test_too_few_words_for_a_window(short, message):
    corpus = {name: torch.arange(4 if name == short else 5) for name in ("train", "val", "test")}
    with pytest.raises(UserError, match=f"^--context: {message}"):
        text_splits(corpus, 400, context=4)


def test_the_end_of_every_work_is_held_out():
    works = [[f"{name}{i}" for i in range(40)] for name in "ab"]
    held = cut(works, held_out=0.1)
    for part, positions in [("train", range(32)), ("val", range(32, 36)), ("test", range(36, 40))]:
        assert held[part] == [f"{name}{i}" for name in "ab" for i in positions]
    # Of 5 % by default, and nothing of a work of few words.
    assert [len(part) for part in cut(works).values()] == [72, 4, 4]
    assert cut([["a"] * 9]) == {"train": ["a"] * 9, "val": [], "test": []}


def test_splits_of_a_corpus():
    corpus = {
        "train": torch.arange(101),
        "val": torch.arange(200, 221),
        "test": torch.arange(300, 331),
    }
    splits = text_splits(corpus, 400, context=10)
    assert splits.classes == 400
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [10, 2, 3]
    assert splits.val.y.flatten().tolist() == list(range(201, 221))
    few = text_splits(corpus, 400, context=10, train_words=31)
    assert few.train.x.flatten().tolist() == list(range(30))
    assert torch.equal(few.test.x, splits.test.x) and len(corpus["train"]) == 101
