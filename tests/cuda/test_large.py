"""Every arithmetic at sizes that fill a GPU, against float64 on the same rounded input."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import reference
from pyguide.ops import cka_pairs_and_flags

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda", 0)

# dtype, precision, and how far values and gradients may be off.
ARITHMETIC = {
    "float64": (torch.float64, "highest", 1e-12, 1e-10),
    "highest": (torch.float32, "highest", 1e-5, 1e-4),
    "high": (torch.float32, "high", 1e-4, 1e-3),
    "medium": (torch.float32, "medium", 1e-3, 8e-3),
    "bfloat16": (torch.bfloat16, "highest", 1e-3, 8e-3),
    "float16": (torch.float16, "highest", 1e-4, 1e-3),
}


def layer(n: int, d: int, seed: int) -> torch.Tensor:
    """Unit-variance features, a part of them common to all seeds, far from zero."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    common = torch.Generator(DEVICE).manual_seed(99)
    signal = torch.randn(n, 16, generator=common, device=DEVICE)
    mixing = torch.randn(16, d, generator=generator, device=DEVICE) / 4
    noise = torch.randn(n, d, generator=generator, device=DEVICE)
    return 0.6 * signal @ mixing + 0.8 * noise + 3


def check(x, y, arithmetic: str, debiased: bool, relative_error) -> None:
    dtype, precision, value_tolerance, gradient_tolerance = ARITHMETIC[arithmetic]
    x, y = x.to(dtype).requires_grad_(), y.to(dtype)
    values, flags = cka_pairs_and_flags(
        [x], [y], debiased=debiased, precision=precision, route="sample"
    )
    # A factor that float16 gradients can hold: without it they are subnormal.
    (gradient,) = torch.autograd.grad(2.0**14 * values.sum(), x)
    exact = x.detach().double().requires_grad_()
    expected = reference.cka(exact, y.double(), debiased=debiased)
    (exact_gradient,) = torch.autograd.grad(2.0**14 * expected, exact)
    assert not flags.any()
    assert abs(values.item() - expected.item()) < value_tolerance
    assert relative_error(gradient, exact_gradient) < gradient_tolerance


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(
    ("n", "d"), [(64, 1 << 19), (128, 200_001), (256, 65536), (777, 30_001), (2048, 8192)]
)
def test_values_and_gradients(relative_error, n, d, debiased, arithmetic):
    check(layer(n, d, 1), layer(n, 1000, 2), arithmetic, debiased, relative_error)


@pytest.mark.parametrize("arithmetic", ["highest", "bfloat16"])
def test_the_largest_batch(relative_error, arithmetic):
    check(layer(16384, 512, 1), layer(16384, 300, 2), arithmetic, False, relative_error)


def test_more_elements_than_32_bits_count(relative_error):
    n, d, chunk = 1024, (1 << 21) + 5, 1 << 17
    x = torch.empty(n, d, dtype=torch.bfloat16, device=DEVICE)
    assert x.numel() > 2**31
    expected = torch.zeros(n, n, dtype=torch.float64, device=DEVICE)
    for i, columns in enumerate(x.split(chunk, dim=1)):
        columns.copy_(layer(n, columns.size(1), i))
        centered = columns.double() - columns.double().mean(dim=0)
        expected += centered @ centered.T
    x.requires_grad_()
    gram = pyguide.gram([x])[0]
    assert relative_error(gram, expected) < 1e-3
    (gradient,) = torch.autograd.grad(gram.diagonal().sum(), x)
    last = x.detach()[:, -chunk:].double()
    wanted = 2 * (last - last.mean(dim=0))
    assert relative_error(gradient[:, -chunk:], wanted) < 8e-3


def test_many_tokens_in_one_call(relative_error):
    n, tokens, d = 64, 1024, 64
    x, y = (layer(n, tokens * d, seed).view(n, tokens, d).requires_grad_() for seed in (1, 2))
    values = pyguide.cka_pairs([x], [y], per_token=True)
    gradient, _ = torch.autograd.grad(values.sum(), (x, y))
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = reference.cka_pairs([exact[0]], [exact[1]], per_token=True)
    exact_gradient, _ = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    assert relative_error(gradient, exact_gradient) < 1e-4
