"""What Ridge, Procrustes and Bures have in common: they start from float64 Gram matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyguide import Guidance
from pyguide.distances import Bures, Distance, Procrustes, Ridge, get_distance

_DISTANCES = [Ridge(), Procrustes(), Procrustes(normalized=False), Bures()]
_LARGEST = {"ridge": 1.0, "procrustes": 2.0, "bures": math.pi / 2}  # without common signal


@pytest.fixture(params=_DISTANCES, ids=repr)
def distance(request: pytest.FixtureRequest) -> Distance:
    return request.param


@pytest.fixture(params=[d for d in _DISTANCES if getattr(d, "normalized", True)], ids=repr)
def scaled(request: pytest.FixtureRequest) -> Distance:
    """The distances that have degenerate layers."""
    return request.param


@pytest.mark.parametrize("name", ["ridge", "procrustes", "bures"])
def test_guidance_by_name(name) -> None:
    x = torch.randn(20, 6)
    target, guide = (nn.Sequential(nn.Linear(6, d), nn.ReLU()) for d in (7, 30))
    guidance = Guidance(target, guide, pairs=[("0", "0"), ("0", "1")], distance=name, weight=2.0)
    with guidance.capture():
        target(x)
    guidance.loss(x).backward()
    gradient = target[0].weight.grad.clone()

    target.zero_grad()
    layer, guides = target[0](x), [guide[0](x).detach(), guide(x).detach()]
    distances = get_distance(name)([layer], guides, pairs=[(0, 0), (0, 1)])
    (2 * distances.sum()).backward()
    torch.testing.assert_close(target[0].weight.grad, gradient)
    assert gradient.any() and all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_16_bit_input(distance, dtype, relative_error) -> None:
    x = torch.randn(20, 4, 9).transpose(1, 2).to(dtype).requires_grad_()
    y = torch.randn(20, 8, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance([x], [y])
    expected = distance([exact[0]], [exact[1]])
    assert value.dtype is torch.float32 and expected.dtype is torch.float64
    assert relative_error(value, expected) < 1e-6
    gradients = torch.autograd.grad(value.sum(), (x, y))
    truths = torch.autograd.grad(expected, exact)
    for t, gradient, truth in zip((x, y), gradients, truths, strict=True):
        assert gradient.dtype is t.dtype and gradient.shape == t.shape
        assert relative_error(gradient, truth) < 2 * torch.finfo(t.dtype).eps


def test_backends_agree(distance, backend) -> None:
    x, y = torch.randn(12, 30, requires_grad=True), torch.randn(12, 40)
    value = distance([x], [y])
    (gradient,) = torch.autograd.grad(value.sum(), x)
    exact = x.detach().double().cpu().requires_grad_()
    expected = distance([exact], [y.double().cpu()])
    torch.testing.assert_close(value.cpu(), expected.float())
    torch.testing.assert_close(
        gradient.cpu(), torch.autograd.grad(expected.sum(), exact)[0].float()
    )


@pytest.mark.parametrize("other", [5, 30])
def test_degenerate_layers(scaled, other) -> None:
    x = torch.randn(12, other, requires_grad=True)
    for width in (3, 20):
        constant = torch.full((12, width), 2.1, requires_grad=True)
        values, flags = scaled.values_and_flags([x, constant, x], [constant, x, x.detach() ** 2])
        assert flags.tolist() == [True, True, False]
        assert values[:2].tolist() == pytest.approx([_LARGEST[scaled.name]] * 2)
        for gradient in torch.autograd.grad(values[:2].sum(), (x, constant)):
            assert not gradient.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("width", [3, 20])
def test_nan_stays_in_its_pairs(distance, bad, width) -> None:
    x, y = torch.randn(12, width), torch.randn(12, 6, requires_grad=True)
    x[2, 1] = bad
    constant = torch.ones(12, 4)
    values, flags = distance.values_and_flags([x, y, x], [y, y**2, constant])
    assert values.isnan().tolist() == [True, False, True]
    assert flags is None or not flags.any()
    assert torch.autograd.grad(values[0], y)[0].isnan().all()


def test_per_token(distance) -> None:
    xs = [torch.randn(12, 3, 5, requires_grad=True), torch.randn(12, 3, 20, requires_grad=True)]
    ys = [torch.randn(12, 3, 2, 4)]
    pairs = [(0, 0), (1, 0)]
    values, flags = distance.values_and_flags(xs, ys, pairs=pairs, per_token=True)
    one_by_one = [distance([x[:, t] for x in xs], [ys[0][:, t]], pairs=pairs) for t in range(3)]
    expected = torch.stack(one_by_one, dim=1)
    torch.testing.assert_close(values, expected)
    assert flags is None or (flags.shape == (2, 3) and not flags.any())
    weights = torch.randn(2, 3)
    for gradient, truth in zip(
        torch.autograd.grad((weights * values).sum(), xs),
        torch.autograd.grad((weights * expected).sum(), xs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, truth)


def test_no_pairs(distance) -> None:
    x = torch.randn(8, 3, 4)
    assert distance([], []).shape == (0,)
    values, flags = distance.values_and_flags([x], [x], pairs=[], per_token=True)
    assert values.shape == (0, 3)
    assert flags is None or flags.shape == (0, 3)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        ([(8, 3), (7, 3)], {}, ValueError, "same number of samples"),
        ([(1, 3), (1, 3)], {}, ValueError, r"xs\[0\] needs at least [24] samples"),
        ([(8, 3), (8, 3)], {"pairs": [(0, 1)]}, IndexError, "out of range for ys"),
        ([(8, 3), (8,)], {"per_token": True}, ValueError, r"ys\[0\] has shape \(8,\)"),
    ],
)
def test_bad_input_raises(distance, shapes, options, error, message) -> None:
    x, y = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(error, match=message):
        distance.values_and_flags([x], [y], **options)


def test_each_layer_is_decomposed_once(distance) -> None:
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += func._schema.name in ("aten::_linalg_eigh", "aten::linalg_cholesky_ex")
            return func(*args, **(kwargs or {}))

    layers = [torch.randn(8, 20, requires_grad=True) for _ in range(3)]
    pairs = [(i, j) for i in range(3) for j in range(3)]
    with Count() as count:
        distance(layers, layers, pairs=pairs).sum().backward()
    assert count.calls == 3


def test_a_second_derivative_raises(distance) -> None:
    x, y = torch.randn(8, 20, requires_grad=True), torch.randn(8, 3)
    (gradient,) = torch.autograd.grad(distance([x], [y]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("distance", [Ridge(), Bures()], ids=repr)  # Bures holds Procrustes
def test_compiled(distance) -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return distance([x], [y]).sum()

    x, y = torch.randn(8, 12, requires_grad=True), torch.randn(8, 9000)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y)
    (gradient,) = torch.autograd.grad(compiled, x)
    expected = loss(x, y)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])
