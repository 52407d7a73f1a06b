"""torch.compile, torch.library and their like."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config

import pyguide
from pyguide.ops import feature_space, sample_space
from pyguide.ops.contract import HIGHEST

# Inductor takes seconds to start, so one worker of pytest-xdist runs all that use it.
pytestmark = pytest.mark.xdist_group("inductor")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    # A graph that was compiled for other shapes of an operator's results is not found by mistake.
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("debiased", [False, True])
def test_fullgraph_equals_eager(debiased: bool) -> None:
    x = torch.randn(32, 50, requires_grad=True)
    images = torch.randn(32, 7, 4, requires_grad=True)
    y = torch.randn(32, 20)

    def step(x, images, y):
        values = pyguide.cka_pairs(
            [x, images, x], [y], pairs=[(0, 0), (1, 0), (2, 0)], debiased=debiased
        )
        return values.sum() + pyguide.gram([x]).square().mean()

    eager = step(x, images, y)
    eager_grads = torch.autograd.grad(eager, (x, images))
    compiled = torch.compile(step, fullgraph=True)(x, images, y)
    compiled_grads = torch.autograd.grad(compiled, (x, images))
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(compiled_grads, eager_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_fullgraph_on_both_routes_with_dynamic_shapes() -> None:
    function = torch.compile(
        lambda x, y: pyguide.cka(x, y, debiased=True), fullgraph=True, dynamic=True
    )
    for n, d in ((4000, 20), (50, 300), (60, 300)):
        x, y = torch.randn(n, d, requires_grad=True), torch.randn(n, d + 5)
        value = function(x, y)
        (grad,) = torch.autograd.grad(value, x)
        expected = pyguide.cka(x, y, debiased=True)
        (expected_grad,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, expected_grad)


def test_one_compilation_serves_every_batch_size(emulated) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda x, y: pyguide.cka(x, y), backend=counter, dynamic=True)
    for n in (40, 50, 70):  # 32 samples and fewer are another graph: their statistics have size 1
        x, y = torch.randn(n, 100, requires_grad=True), torch.randn(n, 90)
        value = function(x, y)
        torch.testing.assert_close(value, pyguide.cka(x, y))
        value.backward()
    assert counter.frame_count == 1


def test_compiled_module_in_a_network() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    guide = torch.randn(16, 40)
    loss = pyguide.CKALoss()
    x = torch.randn(16, 10)

    def step(x):
        return loss([net(x)], [guide])

    step(x).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch.compile(step, fullgraph=True)(x).backward()
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mode", ["nothing requires grad", "no_grad", "inference_mode"])
def test_fullgraph_without_gradient(count: int, mode: str) -> None:
    layers = [torch.randn(16, 5 + i, requires_grad=mode == "no_grad") for i in range(count)]
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(
        mode, torch.enable_grad
    )
    compiled = torch.compile(
        lambda *layers: (pyguide.cka_matrix(layers), pyguide.gram(layers)),
        fullgraph=True,
        backend="aot_eager",
    )
    with context():
        matrix, grams = compiled(*layers)
        torch.testing.assert_close(matrix, pyguide.cka_matrix(layers))
        torch.testing.assert_close(grams, pyguide.gram(layers))


@pytest.mark.parametrize("name", ["cka_sample_space", "cka_feature_space"])
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_opcheck_cka(name: str, debiased: bool, per_token: bool) -> None:
    layers = [torch.randn(4, 9).T, torch.randn(9, 2, 3), torch.randn(9, 10).double()[:, ::2]]
    if per_token:
        layers = [torch.randn(2, 9, 3).transpose(0, 1), torch.randn(9, 2), torch.randn(9, 2, 3)]
    left, right = [0, 1, 2], [1, 2, 2]
    options = (debiased, per_token, HIGHEST)
    forward = getattr(torch.ops.pyguide, name).default
    torch.library.opcheck(forward, (layers, left, right, *options))
    values, degenerate, saved = forward(layers, left, right, *options)
    backward = getattr(torch.ops.pyguide, f"{name}_backward").default
    grad = torch.ones(len(values))
    results = (grad, values, degenerate, saved)
    torch.library.opcheck(backward, (*results, layers, left, right, [0, 2], *options))


@pytest.mark.parametrize("center", [False, True])
def test_opcheck_gram(center: bool) -> None:
    layers = [torch.randn(9, 4), torch.randn(9, 2, 3).to(torch.bfloat16)]
    torch.library.opcheck(torch.ops.pyguide.gram.default, (layers, center, HIGHEST))
    grad = torch.randn(2, 9, 9)
    torch.library.opcheck(
        torch.ops.pyguide.gram_backward.default, (grad, layers, [1], center, HIGHEST)
    )


@pytest.mark.parametrize("per_token", [False, True])
def test_what_routes_save_is_what_they_say(per_token: bool) -> None:
    layers = [torch.randn(9, 2, 3).double(), torch.randn(9, 2, 5).double()]
    for route in (sample_space, feature_space):
        real = route.forward(layers, [0], [1], False, per_token, HIGHEST)[2]
        fake = route.fake_saved(layers, [0], [1], per_token)
        assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]
