"""The guide cache: the same loss, without the guide, by sample."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from cached_guides import (
    ANY,
    FIRST,
    KEPT,
    SAMPLES,
    SECOND,
    doubled,
    filled,
    guide_network,
    guided,
    loss,
    loss_of,
)
from guided_training import Calls

import pyguide
from pyguide.guidance import GuideCache, LargeBatch

pytestmark = pytest.mark.filterwarnings("ignore:biased CKA of")


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()


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
    guidance = guided(cache, guide_transform=doubled)
    cache.fill(guidance, [(ids, data[ids]) for ids in (FIRST, SECOND)])
    expected = loss(guided(guide_transform=doubled), data, ANY)
    torch.testing.assert_close(loss(guidance, data, ANY), expected)
    assert cache.hits == 1


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


def test_other_weights_that_are_assigned_are_noticed(data):
    guide = guide_network()
    guidance = guided(GuideCache(samples=SAMPLES), guide)
    loss(guidance, data, FIRST)
    guide.load_state_dict(guide_network(seed=5).state_dict(), assign=True)
    with pytest.raises(ValueError, match="other the guide's parameters and buffers"):
        loss(guidance, data, FIRST)
    # They are frozen too.
    guidance = guided(guide=guide)
    guide.load_state_dict(guide_network(seed=5).state_dict(), assign=True)
    loss(guidance, data, FIRST)
    assert not any(p.requires_grad for p in guide.parameters())
