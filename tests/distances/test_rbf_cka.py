"""RBF CKA against other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.preprocessing import KernelCenterer

from pyguide.distances import RBFCKA, LinearCKA
from pyguide.ops.dissimilarities import _median


def _published_layers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return x, x + random.randn(100, 10)


def _value(distance: RBFCKA, x: np.ndarray, y: np.ndarray) -> float:
    return 1 - distance([torch.from_numpy(x)], [torch.from_numpy(y)]).item()


def _kernel(x: np.ndarray, multiple: float) -> np.ndarray:
    median = np.median(euclidean_distances(x, squared=True))
    return rbf_kernel(x, gamma=0.5 / (multiple**2 * median))


def test_published_value():
    """google-research/representation_similarity, threshold 0.5."""
    assert _value(RBFCKA(multiple=0.5), *_published_layers()) == pytest.approx(0.65483, abs=5e-6)


@pytest.mark.parametrize("multiple", [0.3, 1.0, 4.0])
def test_scikit_learn(multiple):
    x, y = _published_layers()
    k, other = (KernelCenterer().fit_transform(_kernel(a, multiple)) for a in (x, y))
    expected = (k * other).sum() / np.linalg.norm(k) / np.linalg.norm(other)
    assert _value(RBFCKA(multiple=multiple), x, y) == pytest.approx(expected, abs=1e-12)


def test_debiased_is_the_ratio_of_unbiased_hsic():
    """The estimator as Song et al. 2012 write it (equation 5), without U-centring."""
    x, y = _published_layers()
    n = len(x)

    def hsic(k: np.ndarray, other: np.ndarray) -> float:
        ones = np.ones(n)
        return (
            np.trace(k @ other)
            + k.sum() * other.sum() / ((n - 1) * (n - 2))
            - 2 / (n - 2) * ones @ k @ other @ ones
        ) / (n * (n - 3))

    k, other = (_kernel(a, 1.0) - np.eye(n) for a in (x, y))
    expected = hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))
    assert _value(RBFCKA(debiased=True), x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 64, 65])
@pytest.mark.parametrize("values", [3, 1000])  # 3: many of them are equal
def test_median_of_all_squared_distances(n, values):
    d = torch.randint(0, values, (2, n, n)).double()
    d = d + d.mT
    d.diagonal(dim1=1, dim2=2).zero_()
    expected = [np.median(matrix.numpy()) for matrix in d]
    assert _median(d).tolist() == expected


def test_bandwidth_is_sigma():
    x, _ = _published_layers()
    sigma = float(np.sqrt(np.median(euclidean_distances(x, squared=True))))
    y = np.tanh(x) * sigma  # another layer, whose own median is another
    fixed = _value(RBFCKA(bandwidth=sigma), x, y)
    k = rbf_kernel(x, gamma=0.5 / sigma**2)
    other = rbf_kernel(y, gamma=0.5 / sigma**2)
    k, other = (KernelCenterer().fit_transform(m) for m in (k, other))
    assert fixed == pytest.approx(
        (k * other).sum() / np.linalg.norm(k) / np.linalg.norm(other), abs=1e-12
    )


def test_gradient_is_that_of_a_fixed_bandwidth():
    x = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(24, 4, dtype=torch.float64)
    median = torch.cdist(x.detach(), x.detach()).square().flatten().sort().values[[287, 288]].mean()
    y = y * (median / torch.cdist(y, y).square().flatten().sort().values[[287, 288]].mean()).sqrt()
    by_rule, fixed = RBFCKA()([x], [y]), RBFCKA(bandwidth=median.sqrt().item())([x], [y])
    torch.testing.assert_close(by_rule, fixed)
    torch.testing.assert_close(
        *(torch.autograd.grad(value.sum(), x)[0] for value in (by_rule, fixed))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_kernels_go_to_linear_cka(dtype, related_layers):
    x, y = related_layers(32, [20, 30], dtype)
    for debiased in (False, True):
        linear = LinearCKA(debiased=debiased)([x], [y])
        for width in ({"multiple": 3000.0}, {"bandwidth": 1e10}):
            wide = RBFCKA(**width, debiased=debiased)
            torch.testing.assert_close(wide([x], [y]), linear, rtol=0, atol=1e-6)


def test_mostly_equal_samples():
    """The median is 0: the kernel tells equal samples from others, and has no gradient."""
    x = torch.zeros(8, 3, dtype=torch.float64)
    x[6:] = torch.randn(2, 3, dtype=torch.float64)
    x.requires_grad_()
    y = torch.randn(8, 2, dtype=torch.float64)
    value = RBFCKA()([x], [y])
    equal = torch.ones(8, 8, dtype=torch.float64)
    equal[6:] = equal[:, 6:] = 0
    equal.fill_diagonal_(1)
    k = KernelCenterer().fit_transform(equal.numpy())
    other = KernelCenterer().fit_transform(_kernel(y.numpy(), 1.0))
    expected = 1 - (k * other).sum() / np.linalg.norm(k) / np.linalg.norm(other)
    assert value.item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiple": 0.0}, "multiple must be positive"),
        ({"multiple": float("nan")}, "multiple must be positive"),
        ({"bandwidth": -1.0}, "bandwidth must be positive"),
        ({"bandwidth": 1.0, "multiple": 2.0}, "not both"),
        ({"precision": "low"}, "precision must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RBFCKA(**arguments)


def test_repr():
    assert repr(RBFCKA(debiased=True)) == "RBFCKA(multiple=1.0, debiased=True)"
    assert repr(RBFCKA(bandwidth=2, precision="high")) == (
        "RBFCKA(bandwidth=2.0, debiased=False, precision='high')"
    )
