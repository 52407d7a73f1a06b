"""What RBF CKA and RSA share: native values and gradients of functions of squared distances."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from test_no_wait import RefuseToWait
from torch import Tensor

import pyguide
from pyguide import _native, reference
from pyguide.distances import RBFCKA, RSA, Distance, get_distance
from pyguide.ops import dispatch, pairwise
from pyguide.ops.contract import HIGHEST

# Each with what the reference takes for it.
CASES = {
    "rbf": (RBFCKA(), ("rbf", (1.0, 0.0), "h")),
    "rbf narrow, debiased": (
        RBFCKA(multiple=0.4, debiased=True),
        ("rbf", (0.4, 0.0), "u"),
    ),
    "rbf bandwidth": (RBFCKA(bandwidth=20.0), ("rbf", (1.0, 20.0), "h")),
    "rsa cosine": (RSA(), ("cosine", (), "off_diagonal")),
    "rsa euclidean": (RSA("euclidean"), ("euclidean", (), "off_diagonal")),
    "rsa with diagonal": (RSA(diagonal=True), ("cosine", (), "entries")),
}
PAIRS = [(0, 1), (1, 1), (1, 0), (0, 1)]
every_case = pytest.mark.parametrize(("distance", "formula"), CASES.values(), ids=CASES)
every_distance = pytest.mark.parametrize("distance", [d for d, _ in CASES.values()], ids=CASES)


def _gradients(values: Tensor, layers: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.arange(1.0, 1 + values.numel(), dtype=values.dtype)
    return torch.autograd.grad((weights * values.flatten()).sum(), layers)


def _exact(formula, xs, ys, pairs=PAIRS, per_token=False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Distances and gradients of the same layers in float64 by the reference."""
    xs64, ys64 = ([t.detach().double().requires_grad_() for t in side] for side in (xs, ys))
    values, _ = reference.pairwise_alignment(xs64, ys64, *formula, pairs=pairs, per_token=per_token)
    return 1 - values, _gradients(1 - values, [*xs64, *ys64])


def _assert_close(distance: Distance, formula, xs, ys, value_tolerance, gradient_tolerance):
    layers = [t.requires_grad_() for t in (*xs, *ys)]
    values = distance(xs, ys, pairs=PAIRS)
    expected, expected_gradients = _exact(formula, xs, ys)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=value_tolerance)
    for x, gradient, truth in zip(
        layers, _gradients(values, layers), expected_gradients, strict=True
    ):
        assert gradient.dtype == x.dtype
        assert gradient.stride() == torch.empty_like(x).stride()
        assert (gradient.double() - truth).norm() / truth.norm() < gradient_tolerance


@every_case
@pytest.mark.parametrize("n", [12, 41])
def test_float64(backend, distance, formula, n, related_layers):
    layers = related_layers(n, [7, 100, 30, 12])
    _assert_close(distance, formula, layers[:2], layers[2:], 1e-12, 1e-10)


@every_case
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_float32_far_from_zero(backend, distance, formula, offset, related_layers):
    layers = [(x + offset).float() for x in related_layers(48, [600, 40, 1500, 64])]
    _assert_close(distance, formula, layers[:2], layers[2:], 1e-5, 1e-4)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_features(distance, formula, dtype, related_layers):
    layers = related_layers(32, [64, 40, 80, 33], dtype)
    _assert_close(distance, formula, layers[:2], layers[2:], 1e-5, torch.finfo(dtype).eps)


@every_case
def test_strided_layers(distance, formula, related_layers):
    a, b, c, d = related_layers(20, [4 * 3 * 5, 2 * 7, 24, 9], torch.float32)
    images = a.view(20, 4, 3, 5).to(memory_format=torch.channels_last)
    column = b.view(20, 2, 7)[:, 1].detach()
    rows = torch.stack([c, c], dim=1)[:, 0].detach()
    _assert_close(distance, formula, [images, column], [rows, d], 1e-5, 1e-4)


@every_case
def test_per_token(backend, distance, formula, related_layers):
    xs = [x.view(16, 3, -1).requires_grad_() for x in related_layers(16, [12, 30])]
    ys = [y.view(16, 3, -1).requires_grad_() for y in related_layers(16, [9, 6])]
    values, flags = distance.values_and_flags(xs, ys, pairs=PAIRS, per_token=True)
    assert values.shape == flags.shape == (4, 3)
    expected, expected_gradients = _exact(formula, xs, ys, per_token=True)
    torch.testing.assert_close(values, expected)
    for gradient, truth in zip(_gradients(values, [*xs, *ys]), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, truth)


@pytest.mark.parametrize(
    "distance",
    [RBFCKA(bandwidth=2.0), RBFCKA(bandwidth=1.0, debiased=True), RSA(), RSA("euclidean")],
)
def test_gradcheck(distance):
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    layers = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: distance([x], [y, x], pairs=[(0, 0), (0, 1)]), layers
    )


@every_distance
def test_each_layer_has_one_gram_matrix(distance, monkeypatch, related_layers):
    counted = []
    gram = _native.gram
    monkeypatch.setattr(
        _native, "gram", lambda views, *rest: counted.append(len(views)) or gram(views, *rest)
    )
    x, y, z = related_layers(16, [5, 6, 7])
    distance([x, y], [z, x], pairs=[(0, 0), (0, 1), (1, 0), (1, 1)])
    assert counted == [3]


@every_distance
def test_layers_without_variation(distance, related_layers):
    x, y = (layer.requires_grad_() for layer in related_layers(16, [5, 6], torch.float32))
    constant = torch.full((16, 3), 2.5, requires_grad=True)
    values, flags = distance.values_and_flags([x, constant], [y], pairs=[(0, 0), (1, 0)])
    assert flags.tolist() == [False, True]
    assert values[1].item() == 1.0
    of_constant, of_y = torch.autograd.grad(values.sum(), [constant, y], retain_graph=True)
    assert not of_constant.any()
    (alone,) = torch.autograd.grad(values[0], y)
    torch.testing.assert_close(of_y, alone)


@every_distance
def test_equal_dissimilarities_but_for_rounding(distance):
    """Orthogonal samples of one norm: nothing but rounding is left of RDMs without their mean."""
    x = 3 * torch.linalg.qr(torch.randn(40, 16, dtype=torch.float64)).Q.T
    for dtype in (torch.float32, torch.float64):
        layer, y = x.to(dtype).requires_grad_(), torch.randn(16, 5, dtype=dtype)
        values, flags = distance.values_and_flags([layer], [y])
        biased = not getattr(distance, "debiased", True) or getattr(distance, "diagonal", False)
        assert flags.tolist() == [not biased]  # the diagonal is not equal to the rest
        if not biased:
            assert values.item() == 1.0
            assert not torch.autograd.grad(values.sum(), layer)[0].any()


@every_distance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_clusters_are_finite(distance, dtype):
    """Rounding may leave entries of the Gram matrix's diagonal below zero."""
    centers = 1e4 * torch.randn(3, 64, dtype=torch.float64)
    x = (centers.repeat(16, 1) + torch.randn(48, 64, dtype=torch.float64)).to(dtype)
    y = torch.randn(48, 5, dtype=dtype)
    value = distance([x.requires_grad_()], [y])
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@every_case
def test_single_features(distance, formula):
    """Layers (n,), and of tokens (n, T)."""
    x, y = torch.randn(24, dtype=torch.float64), torch.randn(24, 5, dtype=torch.float64)
    found, _ = distance.values_and_flags([x], [y])
    expected, _ = reference.pairwise_alignment([x], [y], *formula, pairs=[(0, 0)])
    torch.testing.assert_close(found, 1 - expected)
    of_tokens, _ = distance.values_and_flags([y], [y.flip(0)], per_token=True)
    for t in range(5):
        alone = distance([y[:, t]], [y.flip(0)[:, t]])
        torch.testing.assert_close(of_tokens[:, t], alone)


@every_distance
def test_nan_is_not_masked(distance, related_layers):
    x, y = related_layers(16, [5, 6])
    x[3, 2] = torch.nan
    constant = torch.ones(16, 2, dtype=torch.float64)
    values, flags = distance.values_and_flags([x, x], [y, constant])
    assert values.isnan().all()
    assert not flags.any()


@every_distance
def test_no_pairs(distance):
    assert distance([], []).shape == (0,)
    x = torch.randn(8, 3)
    assert distance.values_and_flags([x], [x], pairs=[])[1].shape == (0,)


@every_distance
def test_repeated_calls_give_the_same_bits(distance, related_layers):
    xs, ys = related_layers(64, [300, 200], torch.float32), related_layers(64, [100], torch.float32)
    layers = [t.requires_grad_() for t in (*xs, *ys)]

    def run():
        values = distance(xs, ys, pairs=[(0, 0), (1, 0)])
        return values, *_gradients(values, layers)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@every_distance
def test_many_groups_are_as_one(distance, monkeypatch, related_layers):
    layers = related_layers(16, [5, 6, 7, 8])
    layers = [x.requires_grad_() for x in layers]
    pairs = [(0, 2), (1, 3), (0, 3)]

    def run():
        values = distance(layers, layers, pairs=pairs)
        return values, *_gradients(values, layers)

    whole = run()
    monkeypatch.setattr(pairwise, "_ENTRIES_AT_ONCE", 2 * 16 * 16)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@every_distance
def test_autocast_does_not_reach_inside(distance, related_layers):
    x, y = (layer.requires_grad_() for layer in related_layers(16, [50, 60], torch.float32))
    outside = distance([x], [y])
    expected = torch.autograd.grad(outside.sum(), [x, y])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance([x], [y])
        computed = torch.autograd.grad(inside.sum(), [x, y])
    for a, b in zip((inside, *computed), (outside, *expected), strict=True):
        assert torch.equal(a, b)


@every_distance
def test_fullgraph(distance, related_layers):
    torch._dynamo.reset()
    x, y = (layer.requires_grad_() for layer in related_layers(16, [5, 6], torch.float32))

    def step(x, y):
        return distance([x, x], [y, x]).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
    torch.testing.assert_close(compiled, step(x, y))
    for a, b in zip(
        torch.autograd.grad(compiled, [x, y]), torch.autograd.grad(step(x, y), [x, y]), strict=True
    ):
        torch.testing.assert_close(a, b)


@every_case
@pytest.mark.parametrize("per_token", [False, True])
def test_opcheck(distance, formula, per_token):
    layers = [torch.randn(8, 2, d, dtype=torch.float64) for d in (3, 4)]
    function, parameters, centering = formula
    left, right = [0, 1], [1, 1]
    forward, backward = torch.ops.pyguide.pairwise, torch.ops.pyguide.pairwise_backward
    arguments = (layers, left, right, function, list(parameters), centering, per_token, HIGHEST)
    for differentiable in (True, False):
        torch.library.opcheck(forward.default, (*arguments, differentiable))
    results = forward(*arguments, True)
    grad = torch.ones_like(results[0])
    torch.library.opcheck(
        backward.default,
        (grad, *results, layers, left, right, [1], function, list(parameters), per_token, HIGHEST),
    )


@every_distance
def test_nothing_waits_for_a_gpu(emulated, distance, related_layers):
    layers = [x.requires_grad_() for x in related_layers(12, [5, 6, 7], torch.float32)]
    with RefuseToWait():
        values = distance(layers[:2], layers[1:])
        gradients = torch.autograd.grad(values.sum(), layers)
    assert all(g.abs().sum() > 0 for g in gradients)


@every_distance
def test_second_derivatives_raise(distance, related_layers):
    x, y = (layer.requires_grad_() for layer in related_layers(8, [5, 6]))
    (gradient,) = torch.autograd.grad(distance([x], [y]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@every_distance
def test_devices_without_a_native_backend_use_the_reference(distance, monkeypatch, related_layers):
    x, y = related_layers(16, [5, 6])
    expected = distance([x], [y])
    monkeypatch.setattr(pairwise, "has_native_backend", lambda device: False)
    monkeypatch.setattr(dispatch, "_BACKENDS", {})
    torch.testing.assert_close(distance([x], [y]), expected)


@every_distance
def test_bad_input_raises_before_any_work(distance, monkeypatch):
    monkeypatch.setattr(_native, "gram", None)
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match="same number of samples"):
        distance([x], [x[:7]])
    with pytest.raises(ValueError, match=f"at least {distance.min_samples} samples"):
        distance([x[: distance.min_samples - 1]], [x[: distance.min_samples - 1]])
    with pytest.raises(TypeError, match="must be float64"):
        distance([x.long()], [x])
    with pytest.raises(IndexError, match=r"pairs\[0\]"):
        distance([x], [x], pairs=[(0, 1)])
    with pytest.raises(ValueError, match="same number of tokens"):
        distance.values_and_flags([x[:, None]], [torch.randn(8, 2, 3)], per_token=True)


@pytest.mark.parametrize("name", ["rbf_cka", "debiased_rbf_cka", "rsa"])
def test_guidance_by_name(name):
    torch.manual_seed(0)
    target, guide = (torch.nn.Sequential(torch.nn.Linear(6, d), torch.nn.ReLU()) for d in (8, 9))
    x = torch.randn(32, 6)
    guidance = pyguide.Guidance(target, guide, pairs=[("1", "1")], distance=name)
    with guidance.capture():
        activations = target(x)
    loss = guidance.loss(x)
    loss.backward()
    expected = get_distance(name)([activations.detach()], [guide(x).detach()])[0]
    torch.testing.assert_close(loss.detach(), expected)
    assert target[0].weight.grad.abs().sum() > 0
