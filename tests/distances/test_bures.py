"""The angular shape distance against matrix square roots and principal angles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyguide import reference
from pyguide.distances import Bures, Procrustes


@pytest.mark.parametrize("widths", [(5, 30), (40, 9), (300, 150)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_value_is_that_of_matrix_square_roots(widths, offset, related_layers) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = ((t + offset).float() for t in related_layers(40, list(widths)))
    k, other = reference.gram([x.double(), y.double()]).numpy()
    root = linalg.sqrtm(k + 1e-15 * np.trace(k) * np.eye(40)).real
    fidelity = np.trace(linalg.sqrtm(root @ other @ root)).real
    expected = np.arccos(fidelity / np.sqrt(np.trace(k) * np.trace(other)))
    assert Bures()([x], [y]).item() == pytest.approx(expected, abs=1e-5)


def test_value_is_that_of_principal_angles() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = (
        torch.linalg.qr(reference.center_features(torch.randn(30, 6, dtype=torch.float64)))[0]
        for _ in range(2)
    )
    # All singular values are 1, so the nuclear norm is the sum of the cosines.
    cosines = np.cos(linalg.subspace_angles(x.numpy(), y.numpy()))
    assert Bures()([x], [y]).item() == pytest.approx(np.arccos(cosines.mean()), rel=1e-12)


def test_it_is_a_metric(related_layers) -> None:
    layers = related_layers(20, [3, 8, 15, 30, 60])
    layers += [layers[2] + 1e-3 * torch.randn(20, 15, dtype=torch.float64)]
    pairs = list(itertools.product(range(6), repeat=2))
    angles = Bures()(layers, layers, pairs=pairs).view(6, 6)
    torch.testing.assert_close(angles, angles.T)
    assert angles.diagonal().max() < 1e-13
    assert angles.max() <= math.pi / 2
    assert (angles + torch.eye(6) > 1e-4).all()
    around = angles[:, :, None] + angles[None, :, :]
    assert (angles[:, None, :] <= around + 1e-12).all()


def _at_angle(width: int, tangent: float) -> tuple[Tensor, Tensor]:
    """Layers at the angle arctan(tangent), one of them turned and moved."""
    x = reference.center_features(torch.randn(20, width, dtype=torch.float64))
    # A symmetric change moves along no orthogonal map.
    change = torch.randn(20, 20, dtype=torch.float64)
    change = reference.h_center(change + change.T) @ x
    change = change - (change * x).sum() / x.square().sum() * x
    y = x + tangent * x.norm() / change.norm() * change
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    return x.requires_grad_(), y @ rotation + 1


@pytest.mark.parametrize("width", [12, 50])
@pytest.mark.parametrize("tangent", [1e-2, 1e-4, 1e-6])
def test_close_layers_keep_their_digits(width, tangent) -> None:
    x, y = _at_angle(width, tangent)
    angle = Bures()([x], [y])
    (gradient,) = torch.autograd.grad(angle.sum(), x)
    # arccos of the similarity has an error of 1e-16 / angle.
    assert angle.item() == pytest.approx(math.atan(tangent), abs=1e-13, rel=1e-8)
    # The angle grows by 1 / ||x|| a unit of the steepest change.
    assert gradient.norm().item() * x.norm().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("width", [12, 50])
@pytest.mark.parametrize("tangent", [0, 1e-9])
def test_no_gradient_at_zero(width, tangent) -> None:
    x, y = _at_angle(width, tangent)
    angle = Bures()([x], [y])
    (gradient,) = torch.autograd.grad(angle.sum(), x)
    assert angle.item() == pytest.approx(tangent, abs=1e-13)
    assert not gradient.any()


def test_gradient() -> None:
    layers = [torch.randn(7, d, dtype=torch.float64, requires_grad=True) for d in (4, 12, 3)]
    pairs = [(0, 1), (1, 2), (0, 2)]
    assert torch.autograd.gradcheck(
        lambda *layers: Bures()(layers, layers, pairs=pairs), layers, fast_mode=True
    )


def test_it_is_the_angle_of_the_procrustes_chord(related_layers) -> None:
    x, y = related_layers(30, [20, 50])
    chord = 2 * torch.sin(Bures()([x], [y]) / 2)
    torch.testing.assert_close(chord.square(), Procrustes()([x], [y]))
