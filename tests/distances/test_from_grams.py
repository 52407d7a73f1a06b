"""Distances from centred Gram matrices are those of the layers."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import reference
from pyguide.distances import RBFCKA, RSA, LinearCKA, get_distance

DISTANCES = [
    LinearCKA(),
    LinearCKA(debiased=True),
    RBFCKA(),
    RBFCKA(bandwidth=3.0, debiased=True),
    RSA("euclidean"),
    RSA("euclidean", diagonal=True),
]
PAIRS = [(0, 2), (1, 2), (0, 3), (0, 2)]


def _layers(dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    layers = []
    for d in (7, 300, 12, 3):
        noise = torch.randn(40, d, generator=generator, dtype=torch.float64)
        x = shared @ torch.randn(5, d, generator=generator, dtype=torch.float64) + noise
        layers.append((x / x.std() + offset).to(dtype).requires_grad_())
    return layers


def _from_grams(distance, layers):
    grams = [pyguide.gram([x], center=True)[0] for x in layers]
    return distance.from_grams(grams, PAIRS)


def _gradients(distances, layers):
    weights = torch.arange(1.0, len(PAIRS) + 1, dtype=torch.float64).to(distances.dtype)
    return torch.autograd.grad((weights * distances).sum(), layers, allow_unused=True)


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_values_and_gradients_are_those_of_the_layers(distance):
    layers = _layers()
    values, flags = _from_grams(distance, layers)
    expected, expected_flags = distance.values_and_flags(
        layers[:2], layers[2:], pairs=[(i, j - 2) for i, j in PAIRS]
    )
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(flags, expected_flags)
    for own, other in zip(_gradients(values, layers), _gradients(expected, layers), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_float32_keeps_its_digits(distance, offset):
    layers = _layers(torch.float32, offset)
    exact = [x.detach().double().requires_grad_() for x in layers]
    values, _ = _from_grams(distance, layers)
    expected, _ = _from_grams(distance, exact)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    for own, other in zip(_gradients(values, layers), _gradients(expected, exact), strict=True):
        assert (own.double() - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_the_plain_formula_gives_the_same(distance):
    grams = [pyguide.gram([x.detach()], center=True)[0].requires_grad_() for x in _layers()]
    options = getattr(distance, "_options", None) or (
        "linear",
        (),
        "u" if distance.debiased else "h",
    )
    expected, expected_flags = reference.gram_alignment(grams, *options, pairs=PAIRS)
    values, flags = distance.from_grams(grams, PAIRS)
    torch.testing.assert_close(values, 1 - expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(flags, expected_flags)
    for own, other in zip(_gradients(values, grams), _gradients(1 - expected, grams), strict=True):
        # Of a gradient in a symmetric centred matrix that part alone means anything.
        torch.testing.assert_close(_projected(own), _projected(other), rtol=1e-8, atol=1e-12)


def _projected(gradient):
    return reference.h_center(gradient + gradient.mT)


def test_a_degenerate_layer_has_distance_1_and_no_gradient():
    layers = _layers()
    grams = [pyguide.gram([x.detach()], center=True)[0] for x in layers]
    grams[0] = torch.zeros_like(grams[0])
    grams = [k.requires_grad_() for k in grams]
    values, flags = LinearCKA().from_grams(grams, PAIRS)
    assert flags.tolist() == [True, False, True, True]
    assert values[flags].tolist() == [1.0] * 3
    values.sum().backward()
    assert not grams[0].grad.any() and not grams[3].grad.any() and grams[1].grad.any()


def test_a_second_derivative_raises():
    grams = [pyguide.gram([x.detach()], center=True)[0].requires_grad_() for x in _layers()]
    values, _ = LinearCKA().from_grams(grams, PAIRS)
    (gradient,) = torch.autograd.grad(values.sum(), grams[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["rsa", "ridge", "procrustes", "bures"])
def test_other_distances_need_the_layers(name):
    distance = get_distance(name)
    assert not distance.of_grams
    with pytest.raises(NotImplementedError, match=name):
        distance.from_grams([torch.eye(4)], [(0, 0)])
