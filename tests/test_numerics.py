"""The acceptance of the numerics: features far from zero, correlated, very wide, of any dtype.

Values within 1e-5 and gradients within 1e-4 (relative) of float64 on the same rounded input,
for both estimators. On CUDA that holds at precision "highest"; where it multiplies 16-bit or
TF32 numbers the bound is twice what one rounding of the shifted features loses in float64.
"""

from __future__ import annotations

import pytest
import torch

from pyguide import reference
from pyguide.ops import cka_pairs_and_flags

OFFSETS = [0, 1, 10, 30, 100, 1000]


def _features(n: int, d: int, correlation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers of unit-variance features; each layer's features share one factor."""
    common = torch.randn(n, 1, dtype=torch.float64)
    factors = [common, 0.6 * common + 0.8 * torch.randn(n, 1, dtype=torch.float64)]
    shared = torch.randn(n, d, dtype=torch.float64)
    return tuple(
        correlation**0.5 * factor
        + (1 - correlation) ** 0.5 * (0.6 * shared + 0.8 * torch.randn(n, d, dtype=torch.float64))
        for factor in factors
    )


def _check(x, y, debiased, route, relative_error, gradient_tolerance=1e-4) -> None:
    x, y = x.requires_grad_(), y.requires_grad_()
    value, _ = cka_pairs_and_flags([x], [y], debiased=debiased, route=route)
    grads = torch.autograd.grad(value.sum(), (x, y))
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = reference.cka(*exact, debiased=debiased)
    expected_grads = torch.autograd.grad(expected, exact)
    assert abs(value.item() - expected.item()) < 1e-5
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert relative_error(grad, expected_grad) < gradient_tolerance


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("n, d, route", [(64, 1000, "sample"), (300, 40, "feature")])
def test_float32_far_from_zero(
    instruction_set, relative_error, n, d, route, correlation, offset, debiased
) -> None:
    x, y = _features(n, d, correlation)
    # Without the shift in the backward product the gradient would be off by 1e-4 here.
    _check((x + offset).float(), (y - offset).float(), debiased, route, relative_error, 1e-5)


@pytest.mark.parametrize("n", [4, 5, 8])
@pytest.mark.parametrize("offset", [0, 100])
def test_debiased_at_the_smallest_batches(backend, n, offset) -> None:
    # The estimator itself cancels at n = 4; centring from double sums keeps it within 1e-5.
    for seed in range(40):
        torch.manual_seed(seed)
        x, y = _features(n, 512, 0.0)
        x, y = (x + offset).float(), (y - offset).float()
        value, _ = cka_pairs_and_flags([x], [y], debiased=True, route="sample")
        exact = reference.cka(x.double(), y.double(), debiased=True)
        assert abs(value.item() - exact.item()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", [0, 30, 1000])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("n, d", [(64, 200_000), (512, 4096), (1024, 1500)])
def test_float32_at_size(threads, relative_error, n, d, correlation, offset, debiased) -> None:
    threads(2)
    x, y = _features(n, d, correlation)
    _check((x + offset).float(), (y - offset).float(), debiased, "sample", relative_error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("n, d, route", [(64, 1000, "sample"), (300, 40, "feature")])
def test_16_bit_against_the_same_rounded_input(
    relative_error, n, d, route, correlation, offset, debiased, dtype
) -> None:
    x, y = _features(n, d, correlation)
    x, y = (x + offset).to(dtype), (y - offset).to(dtype)
    value, flag = cka_pairs_and_flags([x], [y], debiased=debiased, route=route)
    exact = reference.cka(x.double(), y.double(), debiased=debiased)
    assert not flag.item() and abs(value.item() - exact.item()) < 1e-5
    # The gradient is rounded to the input's dtype once: eps/2 relative, if half can hold it.
    x = x.requires_grad_()
    value, _ = cka_pairs_and_flags([x], [y], debiased=debiased, route=route)
    (grad,) = torch.autograd.grad(4096 * value.sum(), x)
    x64 = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(4096 * reference.cka(x64, y.double(), debiased=debiased), x64)
    rounded = expected.to(dtype).double()
    once = ((rounded - expected).norm() / expected.norm()).item()
    assert relative_error(grad, expected) < once + 1e-4


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", [0, 1000])
def test_float64_keeps_float64(backend, relative_error, offset, debiased) -> None:
    x, y = _features(64, 700, 0.9)
    x, y = (x + offset).requires_grad_(), y - offset
    value, _ = cka_pairs_and_flags([x], [y], debiased=debiased, route="sample")
    (grad,) = torch.autograd.grad(value.sum(), x)
    exact = x.detach().requires_grad_()
    expected = reference.cka(exact, y, debiased=debiased)
    (expected_grad,) = torch.autograd.grad(expected, exact)
    assert abs(value.item() - expected.item()) < 1e-12
    assert relative_error(grad, expected_grad) < 1e-10


def test_published_failure_of_the_usual_formula(backend) -> None:
    # Centring the float32 Gram after the product, as most libraries do, fails on this input.
    x, y = _features(64, 256, 0.0)
    x, y = (x + 30).float(), (y + 30).float()
    exact = reference.cka(x.double(), y.double(), debiased=True).item()
    usual = [reference.u_center(t @ t.T) for t in (x, y)]
    failed = (usual[0] * usual[1]).sum() / (usual[0].norm() * usual[1].norm())
    value, _ = cka_pairs_and_flags([x], [y], debiased=True, route="sample")
    assert abs(value.item() - exact) < 1e-6
    assert abs(failed.item() - exact) > 1e-5


def test_float16_that_spreads_over_its_whole_range(backend) -> None:
    # As far apart as a shifted feature may be: the cka_pairs docstring states the limit.
    x, y = _features(64, 100, 0.0)
    x = (x * 1000 + 32000).half()
    x[17, 3], x[0, 5] = 65504, 0
    y = y.half()
    value, _ = cka_pairs_and_flags([x], [y], route="sample")
    assert abs(value.item() - reference.cka(x.double(), y.double()).item()) < 1e-4


@pytest.mark.parametrize("debiased", [False, True])
def test_one_feature_has_an_outlier(backend, debiased: bool) -> None:
    # The sampled shift is far from the mean of the outlier's feature; the result must not care.
    x, y = _features(64, 300, 0.0)
    for row in (0, 1, 4):  # row 0 and 4 are sampled, 1 is not
        z = x.clone()
        z[row, 7] = 1e4
        value, _ = cka_pairs_and_flags([z.float()], [y.float()], debiased=debiased, route="sample")
        expected = reference.cka(z.float().double(), y.float().double(), debiased=debiased)
        assert abs(value.item() - expected.item()) < 1e-5


@pytest.mark.parametrize("route", ["sample", "feature"])
@pytest.mark.parametrize("active", [1, 2, 5])
@pytest.mark.parametrize("debiased", [False, True])
def test_few_samples_hold_the_norm(debiased: bool, active: int, route: str) -> None:
    # As after a dead ReLU: the debiased norm of such a layer is a tiny part of its trace.
    n, d = 600, 32
    x = torch.zeros(n, d)
    x[3 : 3 + active] = torch.randn(active, d).relu()
    y = torch.randn(n, d)
    value, degenerate = cka_pairs_and_flags([x], [y], debiased=debiased, route=route)
    expected, expected_flag = reference.cka_pairs_and_flags(
        [x.double()], [y.double()], pairs=[(0, 0)], debiased=debiased
    )
    assert abs(value.item() - expected.item()) < 1e-5
    assert degenerate.item() == expected_flag.item()


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_float32_far_from_zero_on_cuda(
    cuda_backend, relative_error, correlation, offset, debiased
) -> None:
    n, d, tolerance = (64, 200, 1e-5) if cuda_backend == "emulated" else (256, 50_000, 1e-4)
    x, y = _features(n, d, correlation)
    x, y = (x + offset).float(), (y - offset).float()
    _check(x, y, debiased, "sample", relative_error, tolerance)


def _to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Float64 rounded to TF32's 10 bits, ties away from zero."""
    bits = x.float().view(torch.int32) + 0x1000
    return (bits & ~0x1FFF).view(torch.float32).double()


def _to_type(dtype: torch.dtype):
    return lambda x: x.to(dtype).double()


_SCALE = 4096  # of a gradient that float16 can hold


def _one_rounding(x, y, debiased, round_features, round_coefficients, round_gradient):
    """CKA and its scaled gradient in x, in float64 but for roundings of shifted features."""
    in_16_bit = x.dtype in (torch.bfloat16, torch.float16)
    x, y = x.double(), y.double()
    x, y = (round_features(t - (t[:1] if in_16_bit else t.mean(dim=0))) for t in (x, y))
    k = (x @ x.T).requires_grad_()
    center = reference.u_center if debiased else reference.h_center
    a, b = center(k), center(y @ y.T)
    value = (a * b).sum() / (a.norm() * b.norm())
    (grad,) = torch.autograd.grad(_SCALE * value, k)
    return value.detach(), round_gradient(round_coefficients(grad + grad.T) @ x)


def _exactly(x: torch.Tensor) -> torch.Tensor:
    return x


# How features and coefficients are rounded before they are multiplied, and the gradient after. The
# coefficients of 16-bit features are split in two terms, which loses nothing that shows.
ROUNDINGS = {
    "high": (torch.float32, _to_tf32, _to_tf32, _exactly),
    "medium": (torch.float32, *[_to_type(torch.bfloat16)] * 2, _exactly),
    "bfloat16": (torch.bfloat16, _to_type(torch.bfloat16), _exactly, _to_type(torch.bfloat16)),
    "float16": (torch.float16, _to_type(torch.float16), _exactly, _to_type(torch.float16)),
}


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", ROUNDINGS)
def test_cuda_loses_at_most_twice_one_rounding(cuda_backend, kind, offset, debiased) -> None:
    n, d = (48, 160) if cuda_backend == "emulated" else (256, 8192)
    dtype, *roundings = ROUNDINGS[kind]
    precision = kind if dtype == torch.float32 else "highest"
    pairs = [_features(n, d, 0.5) for _ in range(6)]
    xs = [(x + offset).to(dtype).requires_grad_() for x, _ in pairs]
    ys = [(y - offset).to(dtype) for _, y in pairs]
    values, flags = cka_pairs_and_flags(
        xs, ys, debiased=debiased, precision=precision, route="sample"
    )
    assert not flags.any()
    grads = torch.autograd.grad(_SCALE * values.sum(), xs)
    exact, once = [], []
    for x, y in zip(xs, ys, strict=True):
        exact.append(_one_rounding(x.detach(), y, debiased, _exactly, _exactly, _exactly))
        once.append(_one_rounding(x.detach(), y, debiased, *roundings))
    exact_values, exact_grads = (torch.stack(t) for t in zip(*exact, strict=True))
    once_values, once_grads = (torch.stack(t) for t in zip(*once, strict=True))
    value_error = (values.detach().double() - exact_values).norm()
    grad_error = (torch.stack(grads).double() - exact_grads).norm()
    assert value_error <= 2 * (once_values - exact_values).norm() + 1e-6
    assert grad_error <= 2 * (once_grads - exact_grads).norm() + 1e-5 * exact_grads.norm()
