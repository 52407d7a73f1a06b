"""The orthogonal Procrustes distance against singular value decompositions of X^T Y."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyguide.distances import Procrustes


def _centered(x: Tensor) -> np.ndarray:
    x = x.detach().double().reshape(len(x), -1)
    x = x - x[:1]
    return (x - x.mean(dim=0)).numpy()


def _exact(x: Tensor, y: Tensor, normalized: bool) -> tuple[float, np.ndarray]:
    """Value, and gradient in x, from the d x d product of the features."""
    a, b = _centered(x), _centered(y)
    u, s, v = np.linalg.svd(a.T @ b, full_matrices=False)
    kept = s > 1e-12 * np.linalg.norm(a) * np.linalg.norm(b)
    rotated = b @ (u[:, kept] @ v[kept]).T
    if not normalized:
        return (a**2).sum() + (b**2).sum() - 2 * s.sum(), 2 * (a - rotated)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    similarity = s.sum() / norms
    return 2 * (1 - similarity), -2 * (rotated / norms - similarity * a / (a**2).sum())


@pytest.mark.parametrize("widths", [(5, 30), (30, 7), (40, 40), (6, 300), (300, 150)])
@pytest.mark.parametrize("normalized", [True, False])
def test_value_is_that_of_scipy(widths, normalized, related_layers) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = related_layers(40, list(widths))
    width = max(widths)
    a, b = (np.pad(_centered(t), ((0, 0), (0, width - t.size(1)))) for t in (x, y))
    if normalized:
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, nuclear_norm = linalg.orthogonal_procrustes(a, b)
    value = Procrustes(normalized=normalized)([x], [y]).item()
    assert value == pytest.approx(((a @ rotation - b) ** 2).sum(), rel=1e-11)
    assert value == pytest.approx((a**2).sum() + (b**2).sum() - 2 * nuclear_norm, rel=1e-11)


@pytest.mark.parametrize("offset", [0, 1, 100, 1000])
@pytest.mark.parametrize("normalized", [True, False])
def test_float32_far_from_zero(offset, normalized, related_layers, relative_error) -> None:
    layers = [(x + offset).float().requires_grad_() for x in related_layers(40, [7, 30, 90, 400])]
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0)]
    values = Procrustes(normalized=normalized)(layers, layers, pairs=pairs)
    assert values.dtype is torch.float32
    for value, (i, j) in zip(values, pairs, strict=True):
        gradients = torch.autograd.grad(value, [layers[i], layers[j]], retain_graph=True)
        expected, of_first = _exact(layers[i], layers[j], normalized)
        _, of_second = _exact(layers[j], layers[i], normalized)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        for gradient, truth in zip(gradients, (of_first, of_second), strict=True):
            assert relative_error(gradient, torch.from_numpy(truth)) < 1e-6


def _of_low_rank() -> dict[str, Tensor]:
    wide = torch.randn(12, 4, dtype=torch.float64) @ torch.randn(4, 40, dtype=torch.float64)
    twice = torch.randn(6, 30, dtype=torch.float64).repeat(2, 1)
    few = torch.randn(12, 3, dtype=torch.float64)
    return {
        "low rank": wide,
        "samples twice": twice,
        "narrow": few,
        "features twice": few.repeat(1, 2),
        "one feature": few[:, 0],
        "equal singular values": torch.eye(12, dtype=torch.float64).repeat(1, 3),
    }


@pytest.mark.parametrize("name", _of_low_rank())
@pytest.mark.parametrize("width", [3, 30])
def test_gradient_at_any_rank(name, width, relative_error) -> None:
    x = _of_low_rank()[name].requires_grad_()
    y = torch.randn(12, width, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(Procrustes()([x], [y]).sum(), [x, y])
    for gradient, (a, b) in zip(gradients, ((x, y), (y, x)), strict=True):
        expected = torch.from_numpy(_exact(a, b, True)[1]).view(a.shape)
        assert relative_error(gradient, expected) < 1e-9


def test_rounding_is_no_direction_to_turn_to(relative_error) -> None:
    exact = torch.randn(12, 4, dtype=torch.float64) @ torch.randn(4, 40, dtype=torch.float64)
    x = exact.float().requires_grad_()
    y = torch.randn(12, 30)
    (gradient,) = torch.autograd.grad(Procrustes()([x], [y]).sum(), x)
    assert relative_error(gradient, torch.from_numpy(_exact(exact, y, True)[1])) < 1e-5


@pytest.mark.parametrize("normalized", [True, False])
def test_gradcheck_of_pairs_that_share_layers(normalized) -> None:
    layers = [torch.randn(7, d, dtype=torch.float64, requires_grad=True) for d in (3, 12, 20)]
    pairs = [(0, 1), (1, 2), (2, 2), (1, 0), (0, 1)]

    def distances(*layers: Tensor) -> Tensor:
        weights = torch.arange(1.0, 6.0, dtype=torch.float64)
        return weights * Procrustes(normalized=normalized)(layers, layers, pairs=pairs)

    assert torch.autograd.gradcheck(distances, layers, fast_mode=True)


@pytest.mark.parametrize("width", [10, 100])
@pytest.mark.parametrize("scale", [3, 1e-15])
def test_invariances(width, scale, related_layers) -> None:
    x, y = related_layers(30, [width, 25])
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    moved = scale * (x @ rotation + 50)
    torch.testing.assert_close(Procrustes()([moved], [y]), Procrustes()([x], [y]))
    own, unscaled = Procrustes()([moved], [x]), Procrustes(normalized=False)([moved / scale], [x])
    assert own < 1e-20 and unscaled < 1e-20 * x.square().sum()


def test_layers_without_common_signal_do_not_turn() -> None:
    # Four orthogonal patterns over eight samples.
    patterns = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64) + 1)[0]
    patterns = patterns - patterns.mean(dim=0)
    x, y = patterns[:, :2], torch.linalg.qr(patterns)[0][:, 2:4]
    x, y = (t.clone().requires_grad_() for t in (x, y))
    value = Procrustes()([x], [y])
    assert value.item() == pytest.approx(2, abs=1e-14)
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(value.sum(), [x, y]))


def test_an_unscaled_constant_layer_is_a_point() -> None:
    x, constant = torch.randn(9, 4, requires_grad=True), torch.full((9, 20), 2.5)
    values, flags = Procrustes(normalized=False).values_and_flags([x], [constant])
    squares = (x - x.mean(dim=0)).square().sum()
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert flags is None
    torch.testing.assert_close(values[0], squares)
    torch.testing.assert_close(gradient, torch.autograd.grad(squares, x)[0])
