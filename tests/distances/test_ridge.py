"""The ridge score against scikit-learn, and its random projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyguide import reference
from pyguide.distances import Ridge
from pyguide.ops.random_projection import johnson_lindenstrauss_dimension, random_projection


def _exact(x: Tensor, y: Tensor, penalty: float) -> float:
    """1 - mean cosine by scikit-learn in float64."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = (t.double().numpy() for t in (x, y))
    m = len(x) // 2
    model = linear_model.Ridge(penalty, fit_intercept=True, solver="svd").fit(x[:m], y[:m])
    mean = y[:m].mean(axis=0)
    predicted, response = model.predict(x[m:]) - mean, y[m:] - mean
    norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(response, axis=1)
    return 1 - ((predicted * response).sum(axis=1) / norms).mean()


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize("penalty", [0.1, 10.0, 100.0])
@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_value_is_that_of_scikit_learn(n, penalty, offset, related_layers) -> None:
    layers = [(x + offset).float() for x in related_layers(n, [5, 30, 300])]
    pairs = [(0, 1), (1, 0), (1, 2), (2, 0), (0, 0)]
    values = Ridge(penalty)(layers, layers, pairs=pairs)
    expected = [_exact(layers[i], layers[j], penalty) for i, j in pairs]
    assert values.dtype is torch.float32
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_value_is_that_of_kernel_ridge(related_layers) -> None:
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    x, y = related_layers(20, [60, 8])
    a, b = ((t - t[:10].mean(dim=0)).numpy() for t in (x, y))
    predicted = kernel_ridge.KernelRidge(alpha=3.0).fit(a[:10], b[:10]).predict(a[10:])
    norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(b[10:], axis=1)
    expected = 1 - ((predicted * b[10:]).sum(axis=1) / norms).mean()
    assert Ridge(3.0)([x], [y]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offset", [0, 1000])
def test_float32_gradient_far_from_zero(offset, related_layers, relative_error) -> None:
    layers = [(x + offset).float().requires_grad_() for x in related_layers(30, [6, 80])]
    exact = [reference.center_features(x.detach().double()).requires_grad_() for x in layers]
    pairs = [(0, 1), (1, 0)]
    gradients, expected = (
        torch.autograd.grad(Ridge()(ts, ts, pairs=pairs).sum(), ts) for ts in (layers, exact)
    )
    for gradient, truth in zip(gradients, expected, strict=True):
        assert relative_error(gradient, truth) < 1e-5


def test_gradcheck_of_pairs_that_share_layers() -> None:
    # 10 samples of 80 features are projected to 57.
    layers = [torch.randn(10, d, dtype=torch.float64, requires_grad=True) for d in (3, 80)]
    pairs = [(0, 1), (1, 0), (1, 1), (0, 1)]

    def distances(*layers: Tensor) -> Tensor:
        weights = torch.arange(1.0, 5.0, dtype=torch.float64)
        return weights * Ridge(projection=0.9)(layers, layers, pairs=pairs)

    assert torch.autograd.gradcheck(distances, layers, fast_mode=True)


def test_samples_at_the_mean_count_with_cosine_zero() -> None:
    # One feature each, of mean 0.3 and 0.7 over the first half: cosines are signs.
    x = torch.tensor([1.3, -0.7, 0.3, 3.3, 2.3, 0.3], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.7, -0.3, 0.7, 0.7, 2.7, 8.7], dtype=torch.float64, requires_grad=True)
    values, flags = Ridge(0.5).values_and_flags([x], [y])
    assert values.item() == pytest.approx(1 - 1 / 3) and not flags.any()
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(values.sum(), [x, y]))


def test_a_layer_that_is_constant_where_it_fits_is_degenerate() -> None:
    x = torch.randn(12, 50) + 3
    x[:6] = x[0]
    y = torch.randn(12, 4)
    x.requires_grad_()
    values, flags = Ridge().values_and_flags([x, y], [y, x])
    assert flags.tolist() == [True, True] and values.tolist() == [1, 1]
    assert not torch.autograd.grad(values.sum(), x)[0].any()


def test_a_penalty_that_rounding_loses_gives_nan() -> None:
    x, y = torch.randn(20, 2), torch.randn(20, 3)
    assert Ridge(1e-300)([x], [y]).isnan().all()


def test_noise_and_the_seed_come_with_the_projection_only(related_layers) -> None:
    x, y = related_layers(20, [2000, 30])
    exact = Ridge(projection=None)([x], [y])
    projected = [Ridge(projection=0.5, seed=seed)([x], [y]) for seed in (0, 0, 1)]
    assert torch.equal(projected[0], projected[1])
    assert not torch.equal(projected[0], projected[2])
    for value in projected:
        assert 1e-6 < (value - exact).abs().item() < 0.1
    # Not wider than the Johnson-Lindenstrauss dimension, 144.
    assert torch.equal(Ridge(projection=0.5)([y], [y]), Ridge(projection=None)([y], [y]))


@pytest.mark.parametrize("n", [2, 100, 256, 10_000])
@pytest.mark.parametrize("distortion", [0.1, 0.5, 0.9])
def test_johnson_lindenstrauss_dimension(n, distortion) -> None:
    oracle = pytest.importorskip("sklearn.random_projection").johnson_lindenstrauss_min_dim
    # scikit-learn rounds down.
    assert johnson_lindenstrauss_dimension(n, distortion) - 1 == oracle(n, eps=distortion)


def test_projections_keep_distances_and_the_zero() -> None:
    x = torch.randn(20, 50, 100, dtype=torch.bfloat16).transpose(1, 2)
    x[3] = x[4]
    features = johnson_lindenstrauss_dimension(20, 0.5)
    projected = random_projection(x, features, 0)
    assert projected.shape == (20, features) and projected.dtype is torch.float64
    exact = torch.pdist(x.double().flatten(1))
    ratios = (torch.pdist(projected) / exact).square()[exact > 0]
    assert ratios.min() > 0.5 and ratios.max() < 1.5
    assert ratios.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(projected[3], projected[4])


def test_opcheck_projection() -> None:
    x, grad = torch.randn(5, 6, 4).transpose(1, 2), torch.randn(5, 7, dtype=torch.float64)
    torch.library.opcheck(torch.ops.pyguide.random_projection.default, (x, 7, 0))
    torch.library.opcheck(torch.ops.pyguide.random_projection_backward.default, (grad, x, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0}, "penalty must be positive and finite, got 0"),
        ({"penalty": float("nan")}, "penalty must be positive and finite, got nan"),
        ({"penalty": float("inf")}, "penalty must be positive and finite, got inf"),
        ({"projection": 1.0}, r"projection must be None or in \(0, 1\), got 1\.0"),
    ],
)
def test_bad_options_raise(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Ridge(**options)
