"""Random shapes, dtypes, strides and pairs against the float64 oracle."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyguide import reference
from pyguide.ops import cka_pairs_and_flags

_WIDE = [torch.float64, torch.float32]
_ALL = [*_WIDE, torch.bfloat16, torch.float16]
_LAYOUTS = st.sampled_from(["plain", "transposed", "every other", "padded rows", "channels_last"])


@st.composite
def layers(draw: st.DrawFn, n: int, dtypes: list[torch.dtype]) -> Tensor:
    d = draw(st.integers(1, 70))
    dtype = draw(st.sampled_from(dtypes))
    layout = draw(_LAYOUTS)
    offset = draw(st.sampled_from([0.0, 3.0, -50.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(n, d, generator=generator, device=generator.device) + offset
    x = x.to(torch.empty(0).device, dtype)  # the device that the test runs on
    if layout == "transposed":
        x = x.T.contiguous().T
    elif layout == "every other":
        x = torch.stack([x, torch.full_like(x, 99.0)], dim=-1)[..., 0]
    elif layout == "padded rows":
        x = torch.cat([x, torch.full_like(x[:, :1], 99.0)], dim=1)[:, :d]
    elif layout == "channels_last" and d % 4 == 0:
        x = x.reshape(n, d // 4, 2, 2).contiguous(memory_format=torch.channels_last)
    return x.detach().requires_grad_(draw(st.booleans()))


@st.composite
def problems(draw: st.DrawFn, dtypes: list[torch.dtype]):
    n = draw(st.sampled_from([4, 5, 7, 16, 24, 33, 70]))
    xs = draw(st.lists(layers(n, dtypes), min_size=1, max_size=3))
    ys = draw(st.lists(layers(n, dtypes), min_size=1, max_size=3))
    if draw(st.booleans()):
        ys = [*ys, xs[0]]
    index = st.tuples(st.integers(0, len(xs) - 1), st.integers(0, len(ys) - 1))
    return xs, ys, draw(st.lists(index, min_size=1, max_size=5))


_settings = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(_settings, max_examples=120)
@given(problems(_ALL), st.booleans(), st.sampled_from(["sample", "feature", "auto"]))
def test_values_and_gradients(problem, debiased, route) -> None:
    _check(problem, debiased, route)


@settings(_settings, max_examples=150)
@given(data=st.data(), debiased=st.booleans())
def test_values_and_gradients_on_cuda(cuda_backend, data, debiased) -> None:
    # Rounding to 16 bits is bounded in test_numerics.py: it has no bound for every such problem.
    _check(data.draw(problems(_WIDE)), debiased, "sample")


def _check(problem, debiased: bool, route: str) -> None:
    xs, ys, pairs = problem
    values, flags = cka_pairs_and_flags(xs, ys, pairs=pairs, debiased=debiased, route=route)
    # One float64 leaf for each distinct tensor.
    exact = {id(t): t.detach().double().requires_grad_() for t in [*xs, *ys]}
    expected, expected_flags = reference.cka_pairs_and_flags(
        [exact[id(x)] for x in xs], [exact[id(y)] for y in ys], pairs=pairs, debiased=debiased
    )
    all_double = all(t.dtype == torch.float64 for t in [*xs, *ys])
    assert values.dtype == (torch.float64 if all_double else torch.float32)
    assert torch.equal(flags, expected_flags)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    wanted = list({id(t): t for t in [*xs, *ys] if t.requires_grad}.values())
    used = [xs[i] for i, _ in pairs] + [ys[j] for _, j in pairs]
    assert values.requires_grad == any(t.requires_grad for t in used)
    if not values.requires_grad:
        return
    upstream = torch.linspace(0.5, 1.5, len(pairs)).double() * 64
    grads = torch.autograd.grad((values.double() * upstream).sum(), wanted, allow_unused=True)
    expected_grads = torch.autograd.grad(
        (expected * upstream).sum(), [exact[id(t)] for t in wanted], allow_unused=True
    )
    for t, grad, expected_grad in zip(wanted, grads, expected_grads, strict=True):
        if expected_grad is None:
            assert grad is None
            continue
        assert grad.dtype == t.dtype and grad.shape == t.shape
        # One rounding to the input's dtype; the spread covers gradients that cancel to nothing.
        spread = 64 / t.detach().double().std(unbiased=False).item()
        scale = expected_grad.abs().max().item() + 1e-3 * spread
        tolerance = max(2 * torch.finfo(t.dtype).eps, 1e-9 if all_double else 1e-4) * scale
        if t.dtype == torch.float16:
            tolerance += 2.0**-24  # subnormal
        assert (grad.double() - expected_grad).abs().max().item() <= tolerance
