"""Distance objects: values, degenerate pairs, names."""

from __future__ import annotations

import warnings

import pytest
import torch

from pyguide import reference
from pyguide.distances import (
    RBFCKA,
    RSA,
    Bures,
    Distance,
    LinearCKA,
    Procrustes,
    Ridge,
    get_distance,
)


def _layers(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shapes[0][0], 5, generator=generator, dtype=torch.float64)
    layers = []
    for n, *d in shapes:
        mix = torch.randn(5, *d, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, *d, generator=generator, dtype=torch.float64)
        layers.append((torch.tensordot(base, mix, dims=1) + noise).to(dtype))
    return layers


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_cka_is_one_minus_cka_with_its_gradient(debiased, dtype):
    pairs = [(0, 1), (1, 1), (1, 0), (0, 1)]
    xs = [x.requires_grad_() for x in _layers((40, 7), (40, 3, 4), dtype=dtype)]
    ys = [y.requires_grad_() for y in _layers((40, 9), (40, 2, 2), dtype=dtype)]
    distances = LinearCKA(debiased=debiased)(xs, ys, pairs=pairs)
    weights = torch.arange(1.0, 5.0, dtype=dtype)
    gradients = torch.autograd.grad((weights * distances).sum(), [*xs, *ys])

    xs64, ys64 = ([t.detach().double().requires_grad_() for t in ts] for ts in (xs, ys))
    expected = 1 - reference.cka_pairs(xs64, ys64, pairs=pairs, debiased=debiased)
    expected_gradients = torch.autograd.grad((weights.double() * expected).sum(), [*xs64, *ys64])

    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert distances.dtype is dtype
    torch.testing.assert_close(distances.double(), expected, rtol=0, atol=tolerance)
    for gradient, truth in zip(gradients, expected_gradients, strict=True):
        error = (gradient.double() - truth).norm() / truth.norm()
        assert error < 10 * tolerance


def test_pairs_default_to_zip():
    xs, ys = _layers((40, 7), (40, 3)), _layers((40, 9), (40, 4))
    distance = LinearCKA()
    torch.testing.assert_close(distance(xs, ys), distance(xs, ys, pairs=[(0, 0), (1, 1)]))


def test_degenerate_pair_is_flagged_and_has_distance_one():
    x, y = _layers((40, 7), (40, 9))
    constant = torch.full((40, 3), 2.5, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    values, flags = LinearCKA().values_and_flags([x, constant], [y], pairs=[(0, 0), (1, 0)])
    assert flags.tolist() == [False, True]
    assert values[1].item() == 1.0
    (gradient,) = torch.autograd.grad(values.sum(), constant)
    assert not gradient.any()


def test_biased_cka_of_few_samples_warns_once():
    xs, ys = _layers((16, 512)), _layers((16, 512))
    distance = LinearCKA()
    with pytest.warns(UserWarning, match="biased CKA of 16 samples"):
        distance(xs, ys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance(xs, ys)
        LinearCKA(debiased=True)(xs, ys)
        LinearCKA()(_layers((64, 512)), _layers((64, 512)))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, r"xs\[0\] must have shape \(n, \.\.\.\), got a scalar"),
        (1.0, TypeError, r"xs\[0\] must be a tensor, got float"),
    ],
)
def test_what_is_no_layer_raises(x, error, message):
    with pytest.raises(error, match=message):
        LinearCKA()([x], [x])


def test_names():
    assert get_distance("cka").name == "cka"
    assert get_distance("debiased_cka").name == "debiased_cka"
    assert get_distance("debiased_cka").debiased
    distance = LinearCKA()
    assert get_distance(distance) is distance
    with pytest.raises(ValueError, match=r"'ckaa'.*'cka', 'debiased_cka'"):
        get_distance("ckaa")
    with pytest.raises(TypeError, match=r"pyguide\.distances, got function"):
        get_distance(lambda xs, ys: xs)


@pytest.mark.parametrize(
    ("distance", "name"),
    [
        (RSA(), "rsa"),
        (RSA("euclidean"), "rsa(euclidean)"),
        (RSA(diagonal=True), "rsa(diagonal)"),
        (RSA("euclidean", diagonal=True), "rsa(euclidean,diagonal)"),
        (RBFCKA(multiple=1), "rbf_cka"),
        (RBFCKA(multiple=0.5), "rbf_cka(multiple=0.5)"),
        (RBFCKA(bandwidth=20, debiased=True), "debiased_rbf_cka(bandwidth=20)"),
        (Ridge(10), "ridge"),
        (Ridge(100.0), "ridge(penalty=100)"),
        (Ridge(projection=None, seed=3), "ridge(projection=None,seed=3)"),
        (Ridge(1e-6), "ridge(penalty=1e-06)"),
        (Procrustes(), "procrustes"),
        (Procrustes(normalized=False), "procrustes(unnormalized)"),
        (Bures(), "bures"),
        # How GPUs multiply is no other distance.
        (LinearCKA(precision="high"), "cka"),
    ],
    ids=repr,
)
def test_variants_have_names_that_tell_them_apart(distance, name):
    assert distance.name == name
    assert eval(repr(distance)).name == name


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ridge("10"), TypeError, "penalty must be a number, got '10'"),
        (lambda: Ridge(projection="0.1"), TypeError, "projection must be a number"),
        (lambda: Ridge(seed=-1), ValueError, "seed must be in"),
        (lambda: RBFCKA(multiple="wide"), TypeError, "multiple must be a number, got 'wide'"),
        (lambda: RBFCKA(bandwidth=[1.0]), TypeError, "bandwidth must be a number"),
        (lambda: get_distance(RSA), TypeError, r"got the class: call RSA\(\)"),
    ],
)
def test_options_that_are_none_raise_with_their_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_distance_without_flags_needs_only_a_call():
    class MeanGap(Distance):
        name = "mean_gap"

        def __call__(self, xs, ys, *, pairs=None):
            return torch.stack([(xs[i].mean() - ys[j].mean()).square() for i, j in pairs])

    x, y = _layers((40, 7), (40, 9))
    values, flags = MeanGap().values_and_flags([x], [y], pairs=[(0, 0)])
    assert flags is None
    torch.testing.assert_close(values, (x.mean() - y.mean()).square().reshape(1))
    x, y = torch.randn(6, 3, 4), torch.randn(6, 3, 5)
    values, flags = MeanGap().values_and_flags([x], [y], pairs=[(0, 0)], per_token=True)
    assert flags is None
    torch.testing.assert_close(values, (x.mean((0, 2)) - y.mean((0, 2))).square()[None])
