"""The oracle itself, against values and formulas that do not come from pyguide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyguide import reference


def _explicit_center(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n


def test_published_values() -> None:
    # google-research/representation_similarity prints these for NumPy's legacy seed 1337.
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = x + rng.randn(100, 10)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert reference.cka(x, y).item() == pytest.approx(0.55761, abs=5e-6)
    assert reference.cka(x, y, debiased=True).item() == pytest.approx(0.51346, abs=5e-6)


def test_biased_is_the_textbook_formula() -> None:
    x, y = torch.randn(12, 5).double(), torch.randn(12, 7).double()
    h = _explicit_center(12)
    k, m = x @ x.T, y @ y.T
    hsic = [torch.trace(a @ h @ b @ h) for a, b in ((k, m), (k, k), (m, m))]
    expected = hsic[0] / (hsic[1] * hsic[2]).sqrt()
    torch.testing.assert_close(reference.cka(x, y), expected, rtol=1e-12, atol=0)


def test_debiased_is_song_et_al() -> None:
    n = 12
    x, y = torch.randn(n, 5).double() + 3, torch.randn(n, 7).double()

    def hsic1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = a - a.diag().diag(), b - b.diag().diag()
        one = torch.ones(n, dtype=torch.float64)
        cross = one @ a @ b @ one
        sums = (one @ a @ one) * (one @ b @ one)
        total = torch.trace(a @ b) + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross
        return total / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    expected = hsic1(k, m) / (hsic1(k, k) * hsic1(m, m)).sqrt()
    torch.testing.assert_close(reference.cka(x, y, debiased=True), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("debiased", [False, True])
def test_feature_space_is_the_same_inner_product(debiased: bool) -> None:
    x, y = torch.randn(30, 4).double() + 2, torch.randn(30, 6).double()
    center = reference.u_center if debiased else reference.h_center
    expected = (center(x @ x.T) * center(y @ y.T)).sum()
    actual = reference.feature_space_inner_product(x, y, debiased=debiased)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


def test_second_derivatives() -> None:
    x = torch.randn(6, 3).double().requires_grad_()
    y = torch.randn(6, 2).double()
    assert torch.autograd.gradgradcheck(lambda x: reference.cka(x, y), (x,))
    assert torch.autograd.gradgradcheck(lambda x: reference.cka(x, y, debiased=True), (x,))
