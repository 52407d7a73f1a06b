"""Derivatives that native operators do not have are refused, not silently left out."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import pyguide
from pyguide import reference
from pyguide.distances import get_distance


def distance(name):
    return lambda x: get_distance(name)([x], [torch.ones(8, 3).cumsum(0)])[0]


NAMES = ["cka", "debiased_cka", "rbf_cka", "rsa", "ridge", "procrustes", "bures"]
OPERATORS = {name: distance(name) for name in NAMES}
OPERATORS["gram"] = lambda x: pyguide.gram([x]).sum()


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode(backend, name):
    x, tangent = torch.randn(2, 8, 20)
    function = OPERATORS[name]
    with forward_ad.dual_level():
        with pytest.raises(
            RuntimeError, match=r"forward mode, torch\.func\.grad.* use pyguide\.ref"
        ):
            function(forward_ad.make_dual(x, tangent))
        # Another tensor at that level has no tangent.
        assert function(x).isfinite()
    assert function(x.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_functional_transforms(name, requires_grad):
    x, tangent = torch.randn(2, 8, 20)
    x.requires_grad_(requires_grad)
    function = OPERATORS[name]
    batch = torch.randn(3, 8, 20)
    for derivative in (
        lambda: torch.func.jvp(function, (x,), (tangent,)),
        lambda: torch.func.grad(function)(x),
        lambda: torch.func.jacrev(function)(x),
        lambda: torch.func.jacfwd(function)(x),
        lambda: torch.vmap(function)(batch),
        lambda: torch.vmap(torch.func.grad(function))(batch),
        lambda: torch.func.grad(lambda xs: torch.vmap(function)(xs).sum())(batch),
    ):
        with pytest.raises(RuntimeError, match=r"derivatives by backward\(\)"):
            derivative()


def test_functionalize_is_no_derivative():
    x = torch.randn(8, 20)
    for function in OPERATORS.values():
        assert torch.equal(torch.func.functionalize(function)(x), function(x))


def test_what_the_error_names_has_them():
    x, tangent = torch.randn(2, 8, 20).double()
    y = torch.randn(8, 3).double()
    _, found = torch.func.jvp(lambda x: reference.cka(x, y), (x,), (tangent,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pyguide.cka(leaf, y), leaf)
    assert found.item() == pytest.approx((gradient * tangent).sum().item(), rel=1e-9)
