"""The folder of a guide cache: read again, filled further, stale, damaged."""

from __future__ import annotations

import gc
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cached_guides import (
    ANY,
    FIRST,
    KEPT,
    PAIRS,
    SAMPLES,
    SECOND,
    filled,
    guide_network,
    guided,
    loss,
)
from guided_training import Calls
from torch import nn

import pyguide
from pyguide.errors import UserError
from pyguide.guidance import GuideCache, cache_folder

pytestmark = pytest.mark.filterwarnings("ignore:biased CKA of")


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("keep", KEPT)
def test_a_later_run_reads_the_folder(keep, data, tmp_path):
    _cache, guidance = filled(data, folder=tmp_path, keep=keep)
    expected = loss(guidance, data, ANY)
    later = GuideCache(tmp_path, samples=SAMPLES, keep=keep)
    # In another order, and while the first one is still there.
    another = guided(later, pairs=PAIRS[::-1])
    calls = Calls(another.guide)
    torch.testing.assert_close(loss(another, data, ANY), expected)
    assert calls.count == 0 and later.complete


@pytest.mark.parametrize("keep", KEPT)
def test_a_run_that_was_stopped_goes_on(keep, data, tmp_path):
    cache, _ = filled(data, FIRST, folder=tmp_path, keep=keep)
    cache.close()
    later = GuideCache(tmp_path, samples=SAMPLES, keep=keep)
    guidance = guided(later)
    calls = Calls(guidance.guide)
    loss(guidance, data, FIRST)
    assert (calls.count, len(later)) == (0, 18)
    loss(guidance, data, SECOND)
    assert (calls.count, later.complete) == (1, True)
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))


def test_what_is_left_is_recorded_when_the_cache_goes(data, tmp_path):
    filled(data, FIRST, folder=tmp_path)  # and forgotten, well before the next record is due
    gc.collect()
    later = GuideCache(tmp_path, samples=SAMPLES)
    loss(guided(later), data, FIRST)
    assert (later.misses, len(later)) == (0, 18)


@pytest.mark.slow
def test_samples_are_there_after_a_kill(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch\n"
        "import pyguide.guidance.cache_folder as cache_folder\n"
        "from test_guide_cache import SAMPLES, FIRST, SECOND, GuideCache, guided, loss\n"
        "data = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()\n"
        "guidance = guided(GuideCache(sys.argv[1], samples=SAMPLES))\n"
        "cache_folder._SECONDS_BETWEEN_RECORDS = 0.0\n"
        "loss(guidance, data, FIRST[:10])\n"
        "cache_folder._SECONDS_BETWEEN_RECORDS = 1e9\n"
        "loss(guidance, data, FIRST[10:])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "cache"
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    data = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()
    cache = GuideCache(folder, samples=SAMPLES)
    guidance = guided(cache)
    calls = Calls(guidance.guide)
    expected = loss(guided(), data, FIRST[:10])
    torch.testing.assert_close(loss(guidance, data, FIRST[:10]), expected)
    # What no record speaks of is computed anew.
    assert (calls.count, len(cache)) == (0, 10)
    loss(guidance, data, FIRST)
    assert (calls.count, len(cache)) == (1, 18)


def test_one_process_at_a_time_fills_a_folder(data, tmp_path):
    cache, _ = filled(data, FIRST, folder=tmp_path)
    with pytest.raises(UserError, match="another process is writing to"):
        loss(guided(GuideCache(tmp_path, samples=SAMPLES)), data, FIRST)
    cache.close()
    loss(guided(GuideCache(tmp_path, samples=SAMPLES)), data, FIRST)
    with pytest.raises(RuntimeError, match="this GuideCache is closed"):
        loss(guided(cache), data, SECOND)


def test_a_process_that_waited_for_the_lock_finds_what_the_other_did(data, tmp_path, monkeypatch):
    lock = cache_folder.lock

    def late(path):
        monkeypatch.undo()
        filled(data, folder=tmp_path)
        return lock(path)

    monkeypatch.setattr(cache_folder, "lock", late)
    cache = GuideCache(tmp_path, samples=SAMPLES)
    torch.testing.assert_close(loss(guided(cache), data, ANY), loss(guided(), data, ANY))
    assert (cache.misses, cache.hits) == (0, 1)


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def extra_repr(self):
        return repr(self.function)

    def forward(self, x):
        return self.function(x)


def test_the_addresses_of_functions_are_not_in_the_key(data, tmp_path):
    for misses in (2, 0):
        cache = GuideCache(tmp_path, samples=SAMPLES)
        guide = guide_network()
        guide[1] = Activation(lambda x: x.relu())
        guidance = guided(cache, guide=guide)
        for ids in (FIRST, SECOND):
            loss(guidance, data, ids)
        assert cache.misses == misses


def test_other_pairs_of_a_state_are_noticed(data):
    cache = GuideCache(samples=SAMPLES)
    guidance = guided(cache, pairs="even")
    loss(guidance, data, FIRST)
    guidance.load_state_dict(guidance.state_dict() | {"pairs": [("0", "2")]})
    with pytest.raises(ValueError, match=r"other activations than these: layers \['0', '2'\] inst"):
        loss(guidance, data, FIRST)


def _first(output):
    return output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide": guide_network(seed=5)}, "other the guide's parameters and buffers"),
        ({"pairs": PAIRS[:1]}, r"layers \['0', '2'\] instead of \['0'\]"),
        (
            {"pairs": [("0", "0"), pyguide.Pair("0", "2", extract=(None, _first))]},
            "'2 by test_guide_cache_folder._first'",
        ),
        ({"samples": SAMPLES + 1}, "samples 30 instead of 31"),
        ({"keep": "grams"}, "keep 'activations' instead of 'grams'"),
        ({"dtype": torch.float32}, "dtype None instead of 'torch.float32'"),
        ({"key": "crops of version 2"}, "key None instead of 'crops of version 2'"),
        ({"autocast": True}, "autocast None instead of 'torch.bfloat16'"),
        ({"activation": nn.Tanh()}, "other the guide's modules"),
    ],
)
def test_a_stale_folder_is_refused(change, message, data, tmp_path):
    filled(data, folder=tmp_path)
    options = {k: change.pop(k) for k in ("dtype", "keep", "key") if k in change}
    cache = GuideCache(tmp_path, samples=change.pop("samples", SAMPLES), **options)
    autocast = change.pop("autocast", False)
    guide = change.pop("guide", guide_network())
    guide[1] = change.pop("activation", guide[1])
    guidance = guided(cache, guide=guide, **change)
    with (
        torch.autocast("cpu", enabled=autocast),
        pytest.raises(ValueError, match=f"stale or of other activations: .*{message}"),
    ):
        loss(guidance, data, ANY)


def test_a_guide_that_changes_in_training_is_noticed(data):
    _, guidance = filled(data)
    with torch.no_grad():
        guidance.guide[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="other activations than these: other the guide's param"):
        loss(guidance, data, ANY)


def test_a_cut_file_is_refused(data, tmp_path):
    filled(data, folder=tmp_path)
    path = tmp_path / "layer_001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged"):
        loss(guided(GuideCache(tmp_path, samples=SAMPLES)), data, ANY)


def test_a_record_without_its_key_counts_nothing(data, tmp_path):
    filled(data, folder=tmp_path)
    (tmp_path / "key.json").unlink()
    cache, _ = filled(data, FIRST, folder=tmp_path)
    assert cache.misses == 1
    cache._store._folder._unrecorded = None  # as after a kill before the first record
    cache.close()
    later = GuideCache(tmp_path, samples=SAMPLES)
    loss(guided(later), data, FIRST)
    assert later.misses == 1


def test_a_folder_of_another_version_is_refused(data, tmp_path):
    filled(data, folder=tmp_path)
    path = tmp_path / "key.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(ValueError, match="another version of pyguide"):
        loss(guided(GuideCache(tmp_path, samples=SAMPLES)), data, ANY)


def test_too_little_space_is_an_error_before_anything_is_kept(data, tmp_path):
    cache = GuideCache(tmp_path, samples=SAMPLES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="the guide cache needs 2640 bytes"):
            # The smaller layer first, which fits.
            loss(guided(cache, pairs=[("0", "2"), ("0", "0")]), data, FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.bin"))
