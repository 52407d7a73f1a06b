"""Tensors in files: damage, code, half-written files."""

from __future__ import annotations

import pytest
import torch

from pyguide.torch_files import DamagedFile, load_tensors, save_tensors


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    save_tensors(path, {"weights": torch.arange(1000.0), "epoch": 3, "names": ["a", None]})
    return path


def test_a_round_trip(path):
    value = load_tensors(path)
    assert torch.equal(value.pop("weights"), torch.arange(1000.0))
    assert value == {"epoch": 3, "names": ["a", None]}
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_one_wrong_bit_of_a_tensor_is_seen(path):
    content = bytearray(path.read_bytes())
    at = content.index(torch.tensor([500.0]).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    # torch itself reads it, and gives the wrong number.
    assert not torch.equal(torch.load(path)["weights"], torch.arange(1000.0))
    with pytest.raises(DamagedFile, match=r"state\.pt is damaged"):
        load_tensors(path)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:50], lambda b: b[:-1], lambda b: b"x" * 99]
)
def test_a_cut_file_is_damaged(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"state\.pt is damaged"):
        load_tensors(path)


class Code:
    def __reduce__(self):
        return (pytest.fail, ("the file's code ran",))


def test_code_in_a_file_is_not_run(path):
    torch.save({"weights": Code()}, path)
    with pytest.raises(DamagedFile, match=r"state\.pt is damaged"):
        load_tensors(path)


def test_a_missing_file_is_not_called_damaged(path):
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_tensors(path)
