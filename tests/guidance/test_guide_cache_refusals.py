"""What a guide cache refuses by name."""

from __future__ import annotations

import pytest
import torch
from cached_guides import (
    FIRST,
    SAMPLES,
    SECOND,
    doubled,
    filled,
    guided,
    loss,
)
from torch import nn

import pyguide
from pyguide.guidance import Guidance, GuideCache, gaussian_noise

pytestmark = pytest.mark.filterwarnings("ignore:biased CKA of")


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide_mode": "batch_stats"}, "guide_cache needs guide_mode='eval', got 'batch_stats'"),
        ({"guide_mode": "calibrated"}, "guide_cache needs guide_mode='eval', got 'calibrated'"),
        ({"guide_transform": gaussian_noise()}, "cannot keep what the guide makes of gaussian"),
        ({"guide_transform": doubled}, r"needs GuideCache\(..., key=...\)"),
    ],
)
def test_what_is_not_the_same_in_every_epoch_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guided(GuideCache(samples=SAMPLES), **options)


class First:
    """Has the extract as a bound method, whose name does not tell k."""

    def __init__(self, k):
        self.k = k

    def columns(self, output):
        return output[:, : self.k]


@pytest.mark.parametrize("extract", [lambda output: output[:, :3], First(3).columns])
def test_an_extract_without_a_name_needs_a_key(extract, data):
    pairs = [pyguide.Pair("0", "0", extract=(None, extract))]
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


def test_other_samples_of_one_id_in_a_batch_are_refused(data):
    guidance = guided(GuideCache(samples=SAMPLES))
    ids = FIRST.clone()
    ids[3] = ids[2]
    with guidance.capture():
        guidance.target(data[FIRST])
    with pytest.raises(ValueError, match="gives something else than before for samples such as"):
        guidance.loss(data[FIRST], sample_ids=ids)
