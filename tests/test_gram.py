"""pyguide.gram: values, gradients and layouts."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import reference

# Sizes around the register tile (24 or 8 wide), the block (256) and the panel (512 features).
SHAPES = [(2, 1), (3, 24), (23, 7), (24, 511), (25, 512), (255, 513), (257, 40), (530, 1100)]


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("center", [True, False])
def test_against_float64(instruction_set, dtype, n, d, center) -> None:
    x = (torch.randn(n, d) + 0.5).to(dtype)
    actual = pyguide.gram([x], center=center)[0]
    expected = reference.gram([x.double()], center=center)[0]
    # At most twice what torch's own product of the same values loses, plus one rounding.
    wide = x.float() - x.float().mean(dim=0) if center else x.float()
    torch_error = (wide @ wide.T).double() - expected
    error = actual.double() - expected
    eps = torch.finfo(torch.float32).eps
    assert actual.dtype == torch.float32
    assert error.norm() <= 2 * torch_error.norm() + eps * expected.norm()
    assert error.abs().max() <= 2 * torch_error.abs().max() + eps * expected.abs().max()


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("center", [True, False])
def test_float64_input_is_float64_throughout(instruction_set, n, d, center) -> None:
    x = torch.randn(n, d).double() + 0.5
    actual = pyguide.gram([x], center=center)
    expected = reference.gram([x], center=center)
    assert actual.dtype == torch.float64
    scale = x.square().sum(dim=1).max().item()  # what an entry's products sum to in magnitude
    torch.testing.assert_close(actual, expected, rtol=0, atol=16 * 2.0**-52 * scale)


def test_exactly_symmetric() -> None:
    for center in (True, False):
        k = pyguide.gram([torch.randn(301, 77), torch.randn(301, 600)], center=center)
        assert torch.equal(k, k.mT)


def test_ragged_layers_and_mixed_dtypes() -> None:
    layers = [
        torch.randn(40, 3, 5),
        torch.randn(40).double(),
        torch.randn(40, 700).bfloat16(),
        torch.randn(40, 2, 2, 2).half(),
    ]
    k = pyguide.gram(layers)
    assert k.shape == (4, 40, 40) and k.dtype == torch.float32
    torch.testing.assert_close(
        k.double(), reference.gram([x.double() for x in layers]), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("center", [True, False])
def test_gradcheck(backend, center: bool) -> None:
    x = torch.randn(6, 3).double().requires_grad_()
    y = torch.randn(6, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: pyguide.gram([x, y], center=center), (x, y))


def test_gradient_of_an_expanded_upstream(backend) -> None:
    # .sum() sends a gradient of stride 0.
    x = torch.randn(5, 3).double().requires_grad_()
    pyguide.gram([x], center=False).sum().backward()
    y = x.detach().clone().requires_grad_()
    (y @ y.T).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_gradient_of_an_upstream_far_from_zero(backend, relative_error) -> None:
    # A centred Gram ignores the mean of its upstream gradient, which must not cost digits.
    x = torch.randn(60, 30, requires_grad=True)
    weights = torch.randn(60, 60) + 1e4
    (pyguide.gram([x])[0] * weights).sum().backward()
    y = x.detach().double().requires_grad_()
    (reference.gram([y])[0] * weights.double()).sum().backward()
    assert relative_error(x.grad, y.grad) < 1e-6


def test_large_n_gradient(relative_error) -> None:
    # More than 512 samples: the products of apply are drained into double sums.
    x = torch.randn(700, 50, requires_grad=True)
    weights = torch.randn(700, 700)
    (pyguide.gram([x])[0] * weights).sum().backward()
    y = x.detach().double().requires_grad_()
    (reference.gram([y])[0] * weights).sum().backward()
    assert relative_error(x.grad, y.grad) < 1e-6


def _layouts() -> dict[str, torch.Tensor]:
    images = torch.randn(10, 6, 5, 4)
    tokens = torch.randn(10, 7, 12)
    return {
        "channels_last": images.to(memory_format=torch.channels_last),
        "token": tokens[:, 3, :],
        "transposed": torch.randn(8, 10).T,
        "every second feature": torch.randn(10, 20)[:, ::2],
        "batch in the middle": torch.randn(6, 10, 5).transpose(0, 1),
        "channels of channels_last": images.to(memory_format=torch.channels_last)[:, ::2],
        "expanded features": torch.randn(10, 1).expand(10, 5),
        "expanded samples": torch.randn(1, 5).expand(10, 5),
        "overlapping windows": torch.randn(30).unfold(0, 12, 2),
        "permuted": torch.randn(4, 10, 3, 5).permute(1, 3, 0, 2),
    }


@pytest.mark.parametrize("name", _layouts())
def test_any_layout(backend, name: str) -> None:
    x = _layouts()[name].detach().requires_grad_()
    weights = torch.randn(x.size(0), x.size(0))
    k = pyguide.gram([x])
    (grad,) = torch.autograd.grad((k[0] * weights).sum(), x)
    copy = x.detach().double().contiguous().requires_grad_()
    expected = reference.gram([copy])
    (expected_grad,) = torch.autograd.grad((expected[0] * weights).sum(), copy)
    torch.testing.assert_close(k.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-4)
    assert grad.shape == x.shape and grad.dtype == x.dtype
    assert grad.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("n", [200, 300])
def test_deterministic_bits(threads, n: int) -> None:
    layers = [torch.randn(n, d, requires_grad=True) for d in (1000, 70, 2000)]

    def run() -> list[torch.Tensor]:
        k = pyguide.gram(layers)
        values = pyguide.cka_pairs(layers, layers, pairs=[(0, 1), (1, 2)], debiased=True)
        loss = k.square().sum() + values.sum()
        return [k, values, *torch.autograd.grad(loss, layers)]

    for count in (1, 2, 3):
        threads(count)
        first = run()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
