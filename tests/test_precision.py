"""The precision argument, and torch's float32 matmul setting where it is not given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import pyguide
from pyguide.distances import LinearCKA
from pyguide.ops import cuda
from pyguide.ops.contract import PRECISIONS


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Restores torch's default settings and forgets what was compiled."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch._dynamo.reset()


def _legacy(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def _new(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


def _layers() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 100, requires_grad=True), torch.randn(32, 70)


def _by_precision(x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Value and gradient at each precision."""
    results = {}
    for precision in PRECISIONS:
        value = pyguide.cka(x, y, precision=precision)
        results[precision] = value.detach(), torch.autograd.grad(value, x)[0]
    return results


def test_every_function_takes_it(cuda_backend) -> None:
    x, y = _layers()
    expected = {p: value for p, (value, _) in _by_precision(x, y).items()}
    assert len({value.item() for value in expected.values()}) == 3
    grams = []
    for p, value in expected.items():
        assert pyguide.cka_pairs([x], [y], precision=p)[0] == value
        assert pyguide.cka_matrix([x], [y], precision=p)[0, 0] == value
        assert pyguide.CKALoss(precision=p)([x], [y]) == 1 - value
        assert LinearCKA(precision=p)([x], [y])[0] == 1 - value
        grams.append(pyguide.gram([x], precision=p))
    assert not torch.equal(grams[0], grams[1]) and not torch.equal(grams[1], grams[2])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "highest"),
        ([(_legacy, "high")], "high"),
        ([(_legacy, "medium")], "medium"),
        ([(_new, "tf32")], "high"),
        ([(_legacy, "medium"), (_new, "ieee")], "highest"),
        ([(_new, "tf32"), (_legacy, "highest")], "highest"),
    ],
)
def test_torchs_setting_is_the_default(cuda_backend, settings, expected) -> None:
    x, y = _layers()
    results = _by_precision(x, y)
    for set_precision, precision in settings:
        set_precision(precision)
    value = pyguide.cka(x, y)
    assert value == results[expected][0]
    assert pyguide.gram([x]).equal(pyguide.gram([x], precision=expected))


def _weighted_gram(x: Tensor, y: Tensor, **options: str) -> Tensor:
    return (pyguide.gram([x], **options) * y[:, :1]).sum()


@pytest.mark.parametrize("function", [pyguide.cka, _weighted_gram])
def test_backward_uses_what_forward_used(cuda_backend, function) -> None:
    x, y = _layers()
    (expected,) = torch.autograd.grad(function(x, y, precision="medium"), x)
    torch.set_float32_matmul_precision("medium")
    value = function(x, y)
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.autograd.grad(value, x)[0], expected)


def test_every_product_of_a_gradient_obeys_it(cuda_backend) -> None:
    layers = [torch.randn(32, 100), torch.randn(32, 70)]
    forward = cuda.alignment(layers, [0], [1], debiased=False)
    grad = torch.ones(1)
    symmetric = forward.grams

    def differ(gradient: Callable[[int], list[Tensor]]) -> bool:
        results = [gradient(precision)[0] for precision in range(len(PRECISIONS))]
        return all(not torch.equal(a, b) for a, b in itertools.combinations(results, 2))

    assert differ(
        lambda p: cuda.alignment_backward(grad, forward, layers, [0], [1], [0], precision=p)
    )
    assert differ(lambda p: cuda.gram_backward(symmetric, layers, [0], center=True, precision=p))
    assert differ(lambda p: cuda.apply(symmetric, layers, shifted=True, precision=p))


def test_a_cpu_computes_at_the_highest() -> None:
    x, y = _layers()
    results = _by_precision(x, y)
    torch.set_float32_matmul_precision("medium")
    value = pyguide.cka(x, y)
    for result in results.values():
        assert torch.equal(result[0], value)
        assert torch.equal(result[1], results["highest"][1])


def test_a_compiled_function_follows_the_setting(cuda_backend) -> None:
    """Dynamo guards on whether TF32 is allowed, and so between "high" and "medium" on nothing."""
    x, y = _layers()
    expected = {p: value.item() for p, (value, _) in _by_precision(x, y).items()}
    compiled = torch.compile(pyguide.cka, fullgraph=True, backend="aot_eager")
    assert compiled(x, y).item() == expected["highest"]
    torch.set_float32_matmul_precision("high")
    assert compiled(x, y).item() == expected["high"]
    torch.set_float32_matmul_precision("medium")
    assert compiled(x, y).item() == expected["high"]  # what the docstring of cka_pairs warns of
    assert compiled(x, y, precision="medium").item() == expected["medium"]
    torch.set_float32_matmul_precision("highest")
    assert compiled(x, y).item() == expected["highest"]
    torch._dynamo.reset()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert compiled(x, y).item() == expected["high"]


def test_a_wrong_precision_raises() -> None:
    for call in (
        lambda: LinearCKA(precision="fast"),
        lambda: pyguide.CKALoss(precision="tf32"),
        lambda: pyguide.cka_matrix([torch.ones(4, 2)], precision="ieee"),
    ):
        with pytest.raises(ValueError, match="precision must be one of"):
            call()


def test_it_is_shown() -> None:
    assert repr(LinearCKA(precision="high")) == "LinearCKA(debiased=False, precision='high')"
    assert repr(LinearCKA()) == "LinearCKA(debiased=False)"
    assert "precision='high'" in repr(pyguide.CKALoss(precision="high"))
