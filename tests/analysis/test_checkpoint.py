"""The checkpoint of compare_networks: whatever ends a comparison, what it counted is kept."""

from __future__ import annotations

import errno
import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pyguide.analysis
from pyguide.analysis import checkpoint, compare_networks

_COUNTING = {
    str(Path(pyguide.analysis.__file__).parent / name)
    for name in ("checkpoint.py", "compare.py", "streaming.py")
}


class Counting(nn.Sequential):
    """Counts its forward passes, and raises what it is told to in one of them."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.calls = 0
        self.failing: dict[int, BaseException] = {}

    def forward(self, x):
        self.calls += 1
        x = self[1](self[0](x))
        if self.calls in self.failing:
            raise self.failing.pop(self.calls)
        return self[2](x)


@pytest.fixture
def net():
    return Counting()


@pytest.fixture
def batches():
    return torch.randn(42, 6).split(10)  # The last one is too small.


@pytest.fixture
def file(tmp_path):
    return tmp_path / "sums.pt"


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """The last batch is left out with a warning in every comparison here."""


def _assert_same(found, whole):
    torch.testing.assert_close(found.values, whole.values, rtol=0, atol=1e-12)
    assert (found.samples, found.batches, found.rows) == (whole.samples, whole.batches, whole.rows)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IndexError(), SystemExit()], ids=repr)
def test_an_exception_in_a_network_loses_no_batch_before(net, batches, file, error):
    whole = compare_networks(net, data=batches)
    net.calls, net.failing = 0, {3: error}
    with pytest.raises(type(error)) as caught:
        compare_networks(net, data=batches, checkpoint=file)
    assert caught.value is error
    net.calls = 0
    _assert_same(compare_networks(net, data=batches, checkpoint=file), whole)
    assert net.calls == 1 + 2  # the first batch as a check, and what was left
    assert not file.exists()


def test_an_exception_in_a_loader_loses_no_batch_before(net, batches, file):
    whole = compare_networks(net, data=batches)

    def broken():
        yield from batches[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        compare_networks(net, data=broken(), checkpoint=file)
    net.calls = 0
    _assert_same(compare_networks(net, data=batches, checkpoint=file), whole)
    assert net.calls == 1 + 1


def test_each_of_several_interruptions_adds_what_was_counted(net, batches, file):
    whole = compare_networks(net, data=batches)
    for failing, calls in ((2, 2), (3, 3), (3, 3)):
        net.calls, net.failing = 0, {failing: KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            compare_networks(net, data=batches, checkpoint=file)
        assert net.calls == calls
    net.calls = 0
    _assert_same(compare_networks(net, data=batches, checkpoint=file), whole)
    assert net.calls == 1 + 1


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_an_interrupt_at_any_line_counts_every_batch_once(batches, file, monkeypatch, seconds):
    """Also between the steps of one update of the sums."""
    monkeypatch.setattr(checkpoint, "_SECONDS", seconds)
    net = Counting()
    whole = compare_networks(net, data=batches)
    kept = 0
    for line in itertools.count(1):
        file.unlink(missing_ok=True)
        if not _interrupted(line, net, batches, file):
            break
        kept += file.exists()
        _assert_same(compare_networks(net, data=batches, checkpoint=file), whole)
    assert line > 100
    assert kept > 50


def _interrupted(line, net, batches, file):
    """Whether a comparison had so many lines of counting that it was interrupted at this one."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in _COUNTING:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        compare_networks(net, data=batches, checkpoint=file)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_nothing_is_written_before_something_is_counted(net, batches, file):
    net.failing = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        compare_networks(net, data=batches, checkpoint=file)
    assert not file.exists()


def test_the_file_of_another_comparison_is_not_touched(net, batches, file):
    net.failing = {3: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        compare_networks(net, data=batches, checkpoint=file)
    content = file.read_bytes()
    with pytest.raises(ValueError, match="the first batch has other similarities"):
        compare_networks(Counting(), data=batches, checkpoint=file)
    with pytest.raises(ValueError, match="there were 1 batches, it counted 2"):
        compare_networks(net, data=batches[:1], checkpoint=file, keep_checkpoint=True)
    assert file.read_bytes() == content


def test_a_file_that_is_kept_has_everything(net, batches, file):
    whole = compare_networks(net, data=batches, checkpoint=file, keep_checkpoint=True)
    for keep in (True, False):
        net.calls = 0
        assert file.exists()
        found = compare_networks(net, data=batches, checkpoint=file, keep_checkpoint=keep)
        _assert_same(found, whole)
        assert net.calls == 1
    assert not file.exists()


@pytest.fixture
def full_disk(monkeypatch):
    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", save)


def test_a_full_disk_does_not_hide_what_ended_the_comparison(net, batches, file, full_disk):
    net.failing = {2: KeyboardInterrupt()}
    with (
        pytest.warns(UserWarning, match=r"sums\.pt: what was counted last could not be written"),
        pytest.raises(KeyboardInterrupt),
    ):
        compare_networks(net, data=batches, checkpoint=file)


def test_a_place_that_cannot_be_read_or_written_is_told_before_any_work(net, batches, tmp_path):
    (tmp_path / "file").touch()
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "file" / "sums.pt", OSError),
        ("/proc/sums.pt", OSError),
    ):
        with pytest.raises(error, match=r"Is a directory|Not a directory|No such file|exists"):
            compare_networks(net, data=batches, checkpoint=path)
    assert net.calls == 0
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
