"""RSA against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr

from pyguide.distances import RSA


def _layers(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 7)) + 0.5
    return x, x @ random.normal(size=(7, 12)) + random.normal(size=(n, 12))


def _value(distance: RSA, x: np.ndarray, y: np.ndarray) -> float:
    return 1 - distance([torch.from_numpy(x)], [torch.from_numpy(y)]).item()


@pytest.mark.parametrize("rdm", ["cosine", "euclidean"])
def test_off_diagonal(rdm):
    x, y = _layers()
    expected = pearsonr(pdist(x, rdm), pdist(y, rdm)).statistic
    assert _value(RSA(rdm), x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rdm", ["cosine", "euclidean"])
def test_with_the_diagonal(rdm):
    x, y = _layers()
    of_x, of_y = (squareform(pdist(a, rdm)).ravel() for a in (x, y))
    expected = pearsonr(of_x, of_y).statistic
    assert _value(RSA(rdm, diagonal=True), x, y) == pytest.approx(expected, abs=1e-12)
    assert _value(RSA(rdm, diagonal=True), x, y) > _value(RSA(rdm), x, y)


def test_cosine_of_features_far_from_zero():
    """Nearly equal directions, of which K_ij / (|x_i| |x_j|) in float32 has no digit left."""
    x, y = ((a + 1000.0).astype(np.float32) for a in _layers(64))
    expected = pearsonr(
        pdist(x.astype(float), "cosine"), pdist(y.astype(float), "cosine")
    ).statistic
    assert _value(RSA(), x, y) == pytest.approx(expected, abs=1e-5)
    unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=1)
    other = torch.nn.functional.normalize(torch.from_numpy(y), dim=1)
    plain = [(1 - u @ u.T)[~np.eye(64, dtype=bool)].numpy() for u in (unit, other)]
    assert abs(pearsonr(*plain).statistic - expected) > 1e-3


def test_samples_that_are_zero_have_cosine_zero():
    x, y = _layers(12)
    x[3] = x[7] = 0
    with np.errstate(invalid="ignore"):
        cosine = squareform(pdist(x, "cosine"))
    cosine[[3, 7]] = cosine[:, [3, 7]] = 1
    np.fill_diagonal(cosine, 0)
    expected = pearsonr(squareform(cosine), pdist(y, "cosine")).statistic
    layers = [torch.from_numpy(a).requires_grad_() for a in (x, y)]
    value = RSA()(layers[:1], layers[1:])
    assert 1 - value.item() == pytest.approx(expected, abs=1e-12)
    of_x, of_y = torch.autograd.grad(value.sum(), layers)
    assert not of_x[[3, 7]].any()
    assert of_x.isfinite().all() and of_x.any()
    assert of_y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8, 1), (64, 5), (33, 700)])
def test_samples_in_one_direction_have_no_cosines(dtype, shape):
    """Of a rank-one positive layer nothing but rounding is left."""
    n, d = shape
    x = ((torch.rand(n, 1) + 0.1) * torch.rand(1, d)).to(dtype).requires_grad_()
    y = torch.randn(n, 5, dtype=dtype)
    values, flags = RSA().values_and_flags([x], [y])
    assert flags.tolist() == [True]
    assert values.item() == 1.0
    assert not torch.autograd.grad(values.sum(), x)[0].any()


def test_equal_samples_have_distance_and_gradient_zero():
    x, y = _layers(12)
    x[5] = x[2]
    x32 = torch.from_numpy(x).float().requires_grad_()
    value = RSA("euclidean")([x32], [torch.from_numpy(y)])
    rounded = x32.detach().double().numpy()
    expected = pearsonr(pdist(rounded), pdist(y)).statistic
    assert 1 - value.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), x32)
    assert gradient.isfinite().all()


def test_cosine_gradient_has_no_part_along_the_sample():
    x, y = (torch.from_numpy(a).requires_grad_() for a in _layers())
    (gradient,) = torch.autograd.grad(RSA()([x], [y]).sum(), x)
    along = (gradient * x).sum(dim=1)
    assert along.abs().max() < 1e-14
    assert gradient.norm() > 1e-3


def test_bad_arguments():
    with pytest.raises(ValueError, match="rdm must be one of"):
        RSA("manhattan")
    with pytest.raises(ValueError, match="precision must be one of"):
        RSA(precision="low")


def test_repr():
    assert repr(RSA("euclidean", diagonal=True)) == "RSA('euclidean', diagonal=True)"
