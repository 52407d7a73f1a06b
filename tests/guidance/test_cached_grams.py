"""A guide cache that keeps Gram matrices of the data set, of which a batch takes its part."""

from __future__ import annotations

import pytest
import torch
from guided_training import Calls
from test_guide_cache import ANY, FIRST, SAMPLES, SECOND, filled, guided, loss

import pyguide
import pyguide.guidance.sample_grams as sample_grams
from pyguide.distances import RBFCKA, RSA, LinearCKA
from pyguide.guidance import Guidance, GuideCache, LargeBatch

pytestmark = pytest.mark.filterwarnings("ignore:biased CKA of")

DISTANCES = [
    LinearCKA(),
    LinearCKA(debiased=True),
    RBFCKA(),
    RBFCKA(multiple=0.7, debiased=True),
    RSA("euclidean"),
]


@pytest.fixture
def data():
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3)).double()


def grams(folder=None, **options):
    return GuideCache(folder, samples=SAMPLES, keep="grams", **options)


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_the_loss_is_that_of_the_activations(distance, in_folder, data, tmp_path):
    cache = grams(tmp_path if in_folder else None)
    cached, plain = guided(cache, distance=distance), guided(distance=distance)
    calls = Calls(cached.guide)
    for _ in range(2):
        for ids in (FIRST, SECOND):
            torch.testing.assert_close(
                loss(cached, data, ids), loss(plain, data, ids), rtol=1e-9, atol=1e-12
            )
    torch.testing.assert_close(
        loss(cached, data, ANY), loss(plain, data, ANY), rtol=1e-9, atol=1e-12
    )
    assert (calls.count, cache.misses, cache.hits) == (2, 2, 3)
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == (
        ["gram_000.bin", "gram_001.bin"] if in_folder else []
    )


def test_blocks_of_samples(data, monkeypatch):
    monkeypatch.setattr(sample_grams, "_NUMBERS_AT_ONCE", 44)  # 4 of 11 features, 8 of 5
    _, guidance = filled(data, keep="grams")
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))


class Offset(torch.nn.Module):
    def forward(self, x):
        return x + 1000


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
@pytest.mark.parametrize("d", [20, 700])
def test_float32_features_far_from_zero_keep_their_digits(d, distance, dtype):
    """Within 1e-5 of float64 on the same rounded features, the gradient within 1e-4."""
    n = 64
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2 * n, d, generator=generator) for _ in range(2))
    y += x + 1000  # what the guide gives
    guide = torch.nn.Sequential(torch.nn.Identity())
    target = torch.nn.Sequential(torch.nn.Linear(d, d, bias=False))
    torch.nn.init.eye_(target[0].weight)
    cache = GuideCache(samples=2 * n, keep="grams", dtype=dtype)
    guidance = Guidance(target, guide, [("0", "0")], distance, guide_cache=cache)
    cache.fill(guidance, [(torch.arange(2 * n), y)])
    ids = torch.randperm(2 * n, generator=generator)[:n]
    batch = x[ids].requires_grad_()
    with guidance.capture():
        target(batch)
    guidance.loss(None, sample_ids=ids).backward()
    exact = x[ids].double().requires_grad_()
    (expected,) = distance([exact], [y[ids].double()])
    expected.backward()
    assert cache.hits == 1 and guidance.last.dtype == torch.float32
    torch.testing.assert_close(guidance.last[0].double(), expected.detach(), rtol=0, atol=1e-5)
    assert (batch.grad - exact.grad).norm() <= 1e-4 * exact.grad.norm()


def test_a_sample_that_is_not_finite_spoils_its_batches_alone(data):
    data[25] = float("nan")
    _, guidance = filled(data, keep="grams")
    torch.testing.assert_close(loss(guidance, data, FIRST), loss(guided(), data, FIRST))
    assert loss(guidance, data, SECOND)[0].isnan()


def test_equal_samples_are_a_degenerate_layer_also_where_rounding_tells_them_apart():
    data = torch.randn(50, 700, generator=torch.Generator().manual_seed(0)).double()
    equal = torch.arange(10, 17)
    data[equal] = data[10].clone()
    data[equal] *= 1 + 1e-15 * torch.arange(7.0).double()[:, None]
    target = torch.nn.Sequential(torch.nn.Linear(6, 3)).double()
    guide = torch.nn.Sequential(torch.nn.Identity())
    cache = GuideCache(samples=50, keep="grams")
    guidance = Guidance(target, guide, [("0", "0")], guide_cache=cache)
    cache.fill(guidance, [(torch.arange(50), data)])
    with guidance.capture():
        target(torch.randn(7, 6).double())
    with pytest.warns(UserWarning, match="is degenerate"):
        guidance.loss(None, sample_ids=equal)
    assert guidance.last.tolist() == [1]


def test_the_plan_has_the_layers(data, tmp_path):
    filled(data, folder=tmp_path, keep="grams")
    guidance = guided(grams(tmp_path))
    loss(guidance, data, ANY)
    assert [row.guide_shape for row in guidance.plan().rows] == [(7, 11), (7, 5), (7, 11)]


def test_a_kill_before_the_matrices_are_there(data, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyguide.guidance.sample_store.fill_gram", fail)
        cache = grams(tmp_path)
        guidance = guided(cache)
        loss(guidance, data, FIRST)
        with pytest.raises(KeyboardInterrupt):
            loss(guidance, data, SECOND)
        cache.close()
    later = grams(tmp_path)
    guidance = guided(later)
    calls = Calls(guidance.guide)
    torch.testing.assert_close(loss(guidance, data, ANY), loss(guided(), data, ANY))
    assert calls.count == 0 and later.complete
    assert not list(tmp_path.glob("layer_*"))


@pytest.mark.parametrize("name", ["rsa", "ridge", "procrustes", "bures"])
def test_distances_of_more_than_gram_matrices_are_refused(name):
    with pytest.raises(ValueError, match=f"distance '{name}' needs more than Gram matrices"):
        guided(grams(), distance=name)


def test_per_token_pairs_and_masks_are_refused(data):
    mask = torch.ones(SAMPLES, 2).bool()
    with pytest.raises(ValueError, match=r"the pair \('0', '0'\) is compared per token"):
        guided(grams(), pairs=[pyguide.Pair("0", "0", per_token=True)])
    with pytest.raises(ValueError, match="of which padding cannot be left out later"):
        LargeBatch(guided(grams()), 8).backward(lambda x: x.sum(), data, mask=mask)
    guidance = guided(grams())
    with guidance.capture():
        guidance.target(data)
    with pytest.raises(ValueError, match="of which padding cannot be left out later"):
        guidance.loss(data, mask=mask, sample_ids=torch.arange(SAMPLES))
