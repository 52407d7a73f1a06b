"""Gradients of CKA: gradcheck, the oracle, and identities that hold for every input."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import reference
from pyguide.ops import cka_pairs_and_flags

BOTH = pytest.mark.parametrize("debiased", [False, True])
ROUTES = pytest.mark.parametrize("route", ["sample", "feature"])


@BOTH
@ROUTES
def test_gradcheck(backend, debiased: bool, route: str) -> None:
    x = (torch.randn(7, 3).double() + 4).requires_grad_()
    y = torch.randn(7, 2, 2).double().requires_grad_()
    z = torch.randn(7).double().requires_grad_()

    def function(x, y, z):
        pairs = [(0, 0), (1, 1), (0, 1), (1, 0), (1, 2)]
        return cka_pairs_and_flags([x, y], [y, z, x], pairs=pairs, debiased=debiased, route=route)[
            0
        ]

    assert torch.autograd.gradcheck(function, (x, y, z))


@BOTH
@ROUTES
@pytest.mark.parametrize("n", [5, 64, 290, 600])
def test_against_the_oracle(instruction_set, related_layers, relative_error, n, debiased, route):
    pairs = [(0, 1), (0, 2), (1, 2), (2, 2), (0, 1)]
    upstream = torch.randn(len(pairs)).double()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        xs = [x.to(dtype).requires_grad_() for x in related_layers(n, [40, 90, 3])]
        values, _ = cka_pairs_and_flags(xs, xs, pairs=pairs, debiased=debiased, route=route)
        grads = torch.autograd.grad((values.double() * upstream).sum(), xs)
        exact = [x.detach().double().requires_grad_() for x in xs]
        expected = reference.cka_pairs(exact, exact, pairs=pairs, debiased=debiased)
        expected_grads = torch.autograd.grad((expected * upstream).sum(), exact)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert grad.dtype == dtype
            assert relative_error(grad, expected_grad) < tolerance
            assert (grad - expected_grad).abs().max() <= 10 * tolerance * expected_grad.abs().max()


@BOTH
@ROUTES
def test_identities(backend, debiased: bool, route: str) -> None:
    x = (torch.randn(50, 20).double() + 10).requires_grad_()
    y = torch.randn(50, 30).double()
    value, _ = cka_pairs_and_flags([x], [y], debiased=debiased, route=route)
    (grad,) = torch.autograd.grad(value.sum(), x)
    scale = grad.norm() * x.norm()
    assert grad.sum(dim=0).norm() < 1e-10 * scale  # shifts change nothing
    assert abs((grad * x).sum()) < 1e-10 * scale  # nor does scale
    antisymmetric = x.T @ grad - grad.T @ x  # nor do rotations
    assert antisymmetric.norm() < 1e-10 * scale


@BOTH
@ROUTES
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_zero_at_one(backend, debiased, route, dtype, tolerance) -> None:
    x = torch.randn(40, 25, dtype=dtype, requires_grad=True)
    rotation, _ = torch.linalg.qr(torch.randn(25, 25, dtype=torch.float64))
    rotated = (3 * x.detach().double() @ rotation).to(dtype)
    value, _ = cka_pairs_and_flags([x], [rotated], debiased=debiased, route=route)
    (grad,) = torch.autograd.grad(value.sum(), x)
    other, _ = cka_pairs_and_flags([x], [torch.randn(40, 25).to(dtype)], debiased=debiased)
    (typical,) = torch.autograd.grad(other.sum(), x)
    assert value.item() == pytest.approx(1, abs=1e-5)
    assert grad.norm() < tolerance * typical.norm()


def test_a_layer_on_both_sides_sums_its_gradients(backend) -> None:
    x = torch.randn(9, 4).double().requires_grad_()
    y = torch.randn(9, 5).double()
    z = torch.randn(9, 6).double()
    both = pyguide.cka_pairs([x, y], [y, x], pairs=[(0, 0), (1, 1)]).sum() + pyguide.cka(x, z)
    (grad,) = torch.autograd.grad(both, x)
    copy = x.detach().clone().requires_grad_()
    expected = 2 * reference.cka(copy, y) + reference.cka(copy, z)
    (expected_grad,) = torch.autograd.grad(expected, copy)
    torch.testing.assert_close(grad, expected_grad)


def test_second_derivative_raises_and_says_what_to_use(backend) -> None:
    x = torch.randn(9, 4).double().requires_grad_()
    y = torch.randn(9, 5).double()
    (grad,) = torch.autograd.grad(pyguide.cka(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"pyguide\.reference"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(pyguide.gram([x]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"pyguide\.reference"):
        grad.square().sum().backward()


def test_gradients_have_the_inputs_strides(backend) -> None:
    x = torch.randn(8, 3, 5, 4).to(memory_format=torch.channels_last).requires_grad_()
    y = torch.randn(8, 6, 7)
    token = y[:, 2, :].detach().requires_grad_()
    pyguide.cka(x, token).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert token.grad.shape == (8, 7)
    exact_x = x.detach().double().contiguous().requires_grad_()
    reference.cka(exact_x, token.detach().double()).backward()
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-4, atol=1e-7)


def test_training_on_cka_alone_aligns() -> None:
    guide = torch.randn(32, 20)
    x = torch.randn(32, 15, requires_grad=True)
    loss = pyguide.CKALoss()
    before = loss([x], [guide]).item()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss([x], [guide]).backward()
        optimizer.step()
    assert loss([x], [guide]).item() < 0.1 * before
