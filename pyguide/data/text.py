"""Text as words: a vocabulary, and windows that predict the next word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyguide.data.splits import Splits, TensorSplit
from pyguide.errors import UserError

__all__ = ["UNKNOWN", "Corpus", "Parts", "cut", "encode", "text_splits", "windows", "words_of"]

#: The token of words that are not in the vocabulary; it is a word like others.
UNKNOWN = "<unk>"

# Words of "train", "val" and "test", and their numbers, (words,) int64.
Parts = dict[str, list[str]]
Corpus = dict[str, Tensor]

_PARTS = {"train": "training", "val": "validation", "test": "test"}
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[.,;:!?]")
# Windows in one forward pass of an evaluation: their logits have a column a word.
_EVALUATION_BATCH = 64


def words_of(text: str) -> list[str]:
    """Words in lower case, numbers, and the marks ``.,;:!?``, each a word; the rest is dropped.

    Examples
    --------
    >>> from pyguide.data.text import words_of
    >>> words_of("'Tis now struck twelve.  Get thee to bed, Francisco--")
    ['tis', 'now', 'struck', 'twelve', '.', 'get', 'thee', 'to', 'bed', ',', 'francisco']
    """
    return _WORD.findall(text.lower())


def encode(parts: Parts, vocabulary: int) -> tuple[Corpus, list[str]]:
    """Number the words; the vocabulary is of the training part's most frequent ones.

    Parameters
    ----------
    parts : dict
        Words of "train", "val" and "test".
    vocabulary : int
        The largest number of different words, :data:`UNKNOWN` among them.

    Returns
    -------
    corpus : dict of Tensor
        (words,) int64 by part.
    words : list of str
        The word of every number; 0 is :data:`UNKNOWN`. The more frequent first, equally frequent
        ones in alphabetical order.

    Raises
    ------
    UserError
        If there are no words to train on.
    """
    if not parts["train"]:
        raise UserError("--data: the text has no words to train on")
    counts = Counter(parts["train"])
    counts.pop(UNKNOWN, None)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    words = [UNKNOWN, *ordered[: vocabulary - 1]]
    number = {word: i for i, word in enumerate(words)}
    corpus = {
        name: torch.tensor([number.get(word, 0) for word in part], dtype=torch.int64)
        for name, part in parts.items()
    }
    return corpus, words


def windows(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Cut text into pieces that share no predicted word; what is left at the end is dropped.

    Returns
    -------
    x, y : Tensor
        (n, context) int64 each: words, and those that follow them.
    """
    count = (len(ids) - 1) // context
    used = count * context
    return ids[:used].view(count, context), ids[1 : used + 1].view(count, context)


def text_splits(
    corpus: Corpus,
    words: int,
    context: int,
    device: str = "cpu",
    *,
    train_words: int | None = None,
) -> Splits:
    """A corpus as an experiment's data.

    Parameters
    ----------
    corpus : dict of Tensor
        Of :func:`encode`.
    words : int
        Size of the vocabulary.
    context : int
        Words of a window.
    device : str
        Where the tensors go.
    train_words : int, optional
        How many words of the training part are used; all by default.

    Raises
    ------
    UserError
        If a part does not fill a window.
    """
    parts = {}
    for name, ids in (corpus | {"train": corpus["train"][:train_words]}).items():
        if len(ids) <= context:
            least = " or larger --train-words" if name == "train" else ""
            raise UserError(
                f"--context: the {_PARTS[name]} part of the text has {len(ids)} words, and a "
                f"window of {context} needs {context + 1}: give a smaller --context{least}, or "
                "more text"
            )
        x, y = (tensor.to(device) for tensor in windows(ids, context))
        parts[name] = TensorSplit(x, y, _EVALUATION_BATCH)
    return Splits(**parts, classes=words)


def cut(works: Iterable[Sequence[str]], *, held_out: float = 0.05) -> Parts:
    """The words of several works, the end of each held out: as much to validate as to test on."""
    parts: Parts = {"train": [], "val": [], "test": []}
    for work in works:
        own = round(held_out * len(work))
        first, second = len(work) - 2 * own, len(work) - own
        parts["train"] += work[:first]
        parts["val"] += work[first:second]
        parts["test"] += work[second:]
    return parts
