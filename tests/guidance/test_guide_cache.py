"""The guide cache: the same loss, without the guide, by sample."""

from __future__ import annotations

import gc
import json
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from guided_training import Calls
from networks import mlp
from torch import nn

import pyguide
from pyguide.errors import UserError
from pyguide.guidance import Guidance, GuideCache, LargeBatch, cache_folder, gaussian_noise

pytestmark = pytest.mark.filterwarnings("ignore:biased CKA of")

SAMPLES = 30
PAIRS = [("0", "0"), ("2", "2"), ("2", "0")]
FIRST, SECOND = torch.arange(18), torch.arange(18, SAMPLES)
KEPT = ["activations", "grams"]
ANY = torch.tensor([25, 3, 17, 18, 0, 29, 3])  # a sample twice, from both batches


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()


def target_network():
    return mlp(6, 9, 8, 3, seed=1).double()


def guide_network(seed=2):
    return mlp(6, 11, 5, 3, seed=seed).double()


def guided(cache=None, guide=None, pairs=PAIRS, **options):
    guide = guide_network() if guide is None else guide
    return Guidance(target_network(), guide, pairs, guide_cache=cache, **options)


def loss(guidance, data, ids, **inputs):
    """The loss and its gradient, as one vector."""
    with guidance.capture():
        guidance.target(data[ids])
    value = guidance.loss(data[ids], sample_ids=ids, **inputs)
    parameters = list(guidance.target.parameters())
    gradient = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([value.detach()[None], *(g.flatten() for g in gradient if g is not None)])


def loss_of(guidance, data, ids):
    """The distances."""
    with guidance.capture():
        guidance.target(data[ids])
    guidance.loss(data[ids], sample_ids=ids)
    return guidance.last


def filled(data, *batches, **options):
    cache = GuideCache(samples=len(data), **options)
    guidance = guided(cache)
    for ids in batches or (FIRST, SECOND):
        loss(guidance, data, ids)
    return cache, guidance


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize("distance", ["cka", "debiased_cka", "rsa", "ridge"])
def test_the_loss_is_that_without_a_cache_and_the_guide_runs_in_the_first_epoch_only(
    in_folder, distance, data, tmp_path
):
    folder = tmp_path / "cache" if in_folder else None
    cache = GuideCache(folder, samples=SAMPLES)
    cached, plain = guided(cache, distance=distance), guided(distance=distance)
    calls = Calls(cached.guide)
    first = [loss(cached, data, ids) for ids in (FIRST, SECOND)]
    assert (calls.count, cache.misses, cache.hits, len(cache)) == (2, 2, 0, SAMPLES)
    assert cache.complete
    again = [loss(cached, data, ids) for ids in (FIRST, SECOND)]
    assert all(map(torch.equal, first, again))
    torch.testing.assert_close(
        loss(cached, data, ANY), loss(plain, data, ANY), rtol=1e-12, atol=1e-14
    )
    assert (calls.count, cache.misses, cache.hits) == (2, 2, 3)


def test_a_batch_of_which_a_sample_is_missing_runs_the_guide(data):
    cache, guidance = filled(data, FIRST)
    calls = Calls(guidance.guide)
    both = torch.tensor([4, 20, 5, 21])
    torch.testing.assert_close(loss(guidance, data, both), loss(guided(), data, both))
    assert (calls.count, len(cache), cache.complete) == (1, 20, False)
    loss(guidance, data, both.flip(0))
    assert calls.count == 1


def test_a_guide_that_sees_augmented_samples_is_noticed_where_a_sample_comes_back(data):
    cache, guidance = filled(data, FIRST)
    before = loss(guidance, data, FIRST)
    mixed = torch.cat([SECOND[:2], FIRST[:10]])
    with guidance.capture():
        guidance.target(data[mixed])
    with pytest.raises(ValueError, match="'0' gives something else than before for samples such"):
        guidance.loss(data[mixed].flip(1), sample_ids=mixed)
    assert torch.equal(loss(guidance, data, FIRST), before)
    assert len(cache) == len(FIRST)


def test_the_guide_sees_what_it_is_given_and_the_target_may_be_augmented(data):
    cache = GuideCache(samples=SAMPLES)
    guidance = guided(cache)
    for ids in (FIRST, SECOND):
        with guidance.capture():
            guidance.target(data[ids] + torch.randn(len(ids), 6))
        guidance.loss(None, guide_inputs=data[ids], sample_ids=ids)
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))
    assert cache.misses == 2


def test_bfloat16_is_what_is_compared_from_the_first_step_on(data):
    cache, guidance = filled(data, FIRST, SECOND, dtype=torch.bfloat16)
    with guidance.capture():
        guidance.target(data[ANY])
    guidance.loss(None, sample_ids=ANY)
    x = guidance.target[0](data[ANY])
    y = guidance.guide[0](data[ANY]).bfloat16()
    torch.testing.assert_close(guidance.last[0], 1 - pyguide.cka(x, y), rtol=1e-6, atol=0)
    assert cache.misses == 2


@pytest.mark.parametrize("per_token", [False, True])
def test_layers_of_sequences_and_a_mask(per_token):
    data = torch.randn(SAMPLES, 4, 6, generator=torch.Generator().manual_seed(3)).double()
    mask = torch.arange(4) < torch.randint(1, 5, (SAMPLES, 1))
    mask[:, 0] = True
    pairs = [pyguide.Pair("0", "0", per_token=per_token)]
    cache = GuideCache(samples=SAMPLES)
    cached, plain = guided(cache, pairs=pairs), guided(pairs=pairs)
    for ids in (FIRST, SECOND):
        loss(cached, data, ids, mask=mask[ids])
    ids = torch.arange(5, 25)
    expected = loss(plain, data, ids, mask=mask[ids])
    torch.testing.assert_close(loss(cached, data, ids, mask=mask[ids]), expected)
    assert cache.misses == 2


def test_a_rule_is_resolved_in_the_first_step(data):
    cache = GuideCache(samples=SAMPLES)
    guidance = guided(cache, pairs="even")
    calls = Calls(guidance.guide)
    loss(guidance, data, FIRST)
    loss(guidance, data, FIRST)
    assert (calls.count, guidance.pairs) == (1, [("0", "0"), ("2", "2")])
    assert guidance.plan().rows[1].guide_shape == (18, 5)


@pytest.mark.parametrize("keep", KEPT)
def test_large_batches(keep, data):
    cache = GuideCache(samples=SAMPLES, keep=keep)
    cached, plain = guided(cache), guided()
    calls = Calls(cached.guide)
    labels = torch.arange(SAMPLES) % 3
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(4))
    # The second has samples of both kinds, and completes the cache before its last chunk.
    for ids in (order[:9], torch.cat([order[9:], order[:5]]), order, order[4:]):
        for guidance in (cached, plain):
            task = lambda x, y, target=guidance.target: F.cross_entropy(target(x), y)  # noqa: E731
            large = LargeBatch(guidance, chunk_size=8)
            large.backward(task, data[ids], labels[ids], sample_ids=ids)
        torch.testing.assert_close(cached.last, plain.last, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            [p.grad for p in cached.target.parameters()],
            [p.grad for p in plain.target.parameters()],
            rtol=1e-9,
            atol=1e-12,
        )
    assert cache.misses == calls.count == 2 + 3
    assert cache.hits == 1 + 2


def test_two_targets_share_one(data):
    cache, guidance = filled(data)
    other = guided(cache, guide=guidance.guide, pairs=[("0", "2"), ("0", "0")])
    calls = Calls(guidance.guide)
    expected = loss(guided(pairs=[("0", "2"), ("0", "0")]), data, ANY)
    torch.testing.assert_close(loss(other, data, ANY), expected)
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))
    assert calls.count == 0


def test_fill_runs_the_guide_on_what_is_missing(data):
    cache, guidance = filled(data, FIRST)
    guides, targets = Calls(guidance.guide), Calls(guidance.target)
    seen = []
    batches = [(ids, data[ids]) for ids in (FIRST, SECOND)]
    cache.fill(guidance, batches, progress=lambda done, total: seen.append((done, total)))
    assert (guides.count, targets.count, seen) == (1, 0, [(1, 2), (2, 2)])
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))
    assert cache.complete and guides.count == 1


def test_fill_applies_the_transform(data):
    cache = GuideCache(samples=SAMPLES, key="doubled")
    guidance = guided(cache, guide_transform=_doubled)
    cache.fill(guidance, [(ids, data[ids]) for ids in (FIRST, SECOND)])
    expected = loss(guided(guide_transform=_doubled), data, ANY)
    torch.testing.assert_close(loss(guidance, data, ANY), expected)
    assert cache.hits == 1


def _doubled(x):
    return 2 * x


def test_nothing_is_read_after_release_and_at_weight_zero(data, tmp_path):
    for options in ({"release_at": 0}, {"weight": 0.0}):
        cache = GuideCache(tmp_path / "never", samples=SAMPLES)
        guidance = guided(cache, **options)
        with guidance.capture():
            guidance.target(data[FIRST])
        assert guidance.loss(data[FIRST]) == 0
        assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_inside_compiled_code_it_is_a_graph_break(data):
    torch._dynamo.reset()
    cache = GuideCache(samples=SAMPLES)
    cached, plain = guided(cache), guided()
    calls = Calls(cached.guide)

    def step(x, ids):
        with cached.capture():
            y = cached.target(x)
        return cached.total_loss(y.square().mean(), x, sample_ids=ids)

    compiled = torch.compile(step, backend="eager")
    for ids in (FIRST, SECOND, FIRST, SECOND):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Dynamo does not know how to trace")
            compiled(data[ids], ids).backward()
        torch.testing.assert_close(cached.last, loss_of(plain, data, ids))
    assert (calls.count, cache.hits) == (2, 2)
    torch._dynamo.reset()


def test_under_inference_mode(data):
    cache = GuideCache(samples=SAMPLES)
    guidance = guided(cache)
    with torch.inference_mode():
        inferred = loss_of(guidance, data, FIRST)
    for ids in (FIRST, SECOND):
        loss(guidance, data, ids)
    torch.testing.assert_close(inferred, loss_of(guided(), data, FIRST))
    assert cache.complete


def test_the_time_of_reading_is_the_guides(data):
    _, guidance = filled(data)
    timed = guided(guidance.guide_cache, timed=True)
    loss(timed, data, ANY)
    timed.step()
    assert timed.times()["guidance/seconds/guide"] > 0


def test_the_state_has_nothing_of_it(data):
    _, guidance = filled(data)
    assert guidance.state_dict() == guided().state_dict()


# ----------------------------------------------------------------------------- folders


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
            "'2 by test_guide_cache._first'",
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


# ----------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide_mode": "batch_stats"}, "guide_cache needs guide_mode='eval', got 'batch_stats'"),
        ({"guide_mode": "calibrated"}, "guide_cache needs guide_mode='eval', got 'calibrated'"),
        ({"guide_transform": gaussian_noise()}, "cannot keep what the guide makes of gaussian"),
        ({"guide_transform": _doubled}, r"needs GuideCache\(..., key=...\)"),
    ],
)
def test_what_is_not_the_same_in_every_epoch_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guided(GuideCache(samples=SAMPLES), **options)


def test_an_extract_without_a_name_needs_a_key(data):
    pairs = [pyguide.Pair("0", "0", extract=(None, lambda output: output[:, :3]))]
    with pytest.raises(ValueError, match="cannot tell the `extract` of guide layer '0'"):
        loss(guided(GuideCache(samples=SAMPLES), pairs=pairs), data, FIRST)
    cache = GuideCache(samples=SAMPLES, key="three features")
    guidance = guided(cache, pairs=pairs)
    expected = loss(guided(pairs=pairs), data, FIRST)
    for _ in range(2):
        torch.testing.assert_close(loss(guidance, data, FIRST), expected)
    assert cache.hits == 1


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (None, ValueError, r"loss\(\) needs sample_ids="),
        ([0, 1], TypeError, r"int64 tensor of shape \(n,\), got \[0, 1\]"),
        (torch.zeros(3), TypeError, r"got torch.float32 \(3,\)"),
        (FIRST[:, None], TypeError, r"got torch.int64 \(18, 1\)"),
        (FIRST - 1, ValueError, r"in 0 ... 29, as .* got -1 ... 16"),
        (FIRST + 13, ValueError, r"in 0 ... 29, as .* got 13 ... 30"),
        (FIRST[:5], ValueError, "sample_ids has 5 ids, but a target layer gave"),
    ],
)
@pytest.mark.parametrize("is_filled", [False, True])
def test_wrong_ids(ids, error, message, is_filled, data):
    guidance = filled(data)[1] if is_filled else guided(GuideCache(samples=SAMPLES))
    with guidance.capture():
        guidance.target(data[FIRST])
    with pytest.raises(error, match=message):
        guidance.loss(data[FIRST], sample_ids=ids)
    assert guidance.guide_cache.misses == 2 * is_filled


def test_sequences_that_are_padded_to_the_longest_of_a_batch_are_refused():
    data = torch.randn(SAMPLES, 4, 6).double()
    guidance = guided(GuideCache(samples=SAMPLES))
    loss(guidance, data, FIRST)
    with pytest.raises(ValueError, match=r"'0' gave torch.float64 \(3, 11\) a sample, and .*4, 11"):
        loss(guidance, data[:, :3], SECOND)


def test_packed_sequences_are_refused():
    data = torch.randn(SAMPLES, 4, 6)
    lengths = torch.arange(SAMPLES) % 4 + 1
    packed = nn.utils.rnn.pack_padded_sequence(data, lengths, True, enforce_sorted=False)
    target, guide = nn.Sequential(nn.Linear(6, 3)), nn.Sequential(nn.LSTM(6, 5, batch_first=True))
    cache = GuideCache(samples=SAMPLES)
    guidance = Guidance(target, guide, [("0", "0")], guide_cache=cache)
    with guidance.capture():
        target(data)
    with pytest.raises(ValueError, match="guide layer '0' gives padded sequences"):
        guidance.loss((packed,), sample_ids=torch.arange(SAMPLES))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be a whole number"),
        (
            {"samples": 9, "dtype": torch.int8},
            ValueError,
            "dtype must be one of float64",
        ),
        ({"samples": 9, "keep": "all"}, ValueError, "keep must be one of"),
        ({"samples": 9, "keep": "grams", "dtype": torch.bfloat16}, ValueError, "for keep='grams'"),
        ({"samples": 9, "key": 3}, TypeError, "key must be a string"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        GuideCache(**options)
    with pytest.raises(TypeError, match="guide_cache must be a pyguide"):
        guided("folder")


def test_fill_says_what_it_needs(data):
    cache = GuideCache(samples=SAMPLES)
    batches = [(FIRST, data[FIRST])]
    with pytest.raises(ValueError, match="guidance must have this cache"):
        cache.fill(guided(), batches)
    with pytest.raises(RuntimeError, match="give Guidance an example=, or list the pairs"):
        cache.fill(guided(cache, pairs="even"), batches)
    with pytest.raises(RuntimeError, match="this Guidance is released"):
        cache.fill(guided(cache, release_at=0), batches)
