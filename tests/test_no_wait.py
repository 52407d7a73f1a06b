"""No operator reads a number of its tensors on the host, which on a GPU would wait for the device.

Seen without a GPU: the torch operators that would wait are refused while ours run.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyguide
from pyguide.analysis import StreamingCKA
from pyguide.analysis.layer_grams import LayerGrams
from pyguide.ops import cuda, feature_space
from pyguide.ops.contract import HIGHEST

# Reads a number or a size that depends on values; copies an index, or a new tensor, to the device.
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "index",
    "index_put_",
    "lift_fresh",
}


class RefuseToWait(TorchDispatchMode):
    """Raises when an operator is called that would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in WAITS:
            raise AssertionError(f"{name} would wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0, 0] > 0),
        lambda x: x[[1, 0]],
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0] * x.size(1)),
    ],
)
def test_waiting_is_noticed(wait) -> None:
    with pytest.raises(AssertionError, match="would wait"), RefuseToWait():
        wait(torch.randn(4, 3))


def _layers(tokens: tuple[int, ...] = ()) -> list[Tensor]:
    return [torch.randn(20, *tokens, d) for d in (6, 9, 4)]


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_feature_space(debiased, per_token) -> None:
    layers = _layers((2,) if per_token else ())
    left, right, options = [0, 1, 2], [1, 2, 2], (debiased, per_token, HIGHEST)
    with RefuseToWait():
        values, flags, saved = feature_space.forward(layers, left, right, *options)
        grad = torch.ones_like(values)
        grads = feature_space.backward(
            grad, values, flags, saved, layers, left, right, [0, 2], *options
        )
    assert not flags.any()
    for layer, computed in zip((layers[0], layers[2]), grads, strict=True):
        assert computed.shape == layer.shape
        assert computed.abs().sum() > 0


@pytest.mark.parametrize("n", [20, 30])  # 30: layer by layer
def test_cuda_calls(emulated, monkeypatch, n) -> None:
    monkeypatch.setattr(cuda, "_LARGEST_BATCH_AT_ONCE", 25)
    layers = [torch.randn(n, d) for d in (6, 9, 4)]
    left, right = [0, 1, 2], [1, 2, 2]
    with RefuseToWait():
        result = cuda.alignment(layers, left, right, debiased=True)
        grad = torch.ones_like(result.values)
        of_pairs = cuda.alignment_backward(grad, result, layers, left, right, [0, 2])
        grams = cuda.gram(layers, center=True)
        of_grams = cuda.gram_backward(grams, layers, [0, 2], center=True)
        applied = cuda.apply(grams, layers, shifted=True)
    expected = pyguide.reference.cka_pairs(
        layers, layers, pairs=[(0, 1), (1, 2), (2, 2)], debiased=True
    )
    torch.testing.assert_close(result.values.float(), expected, rtol=1e-4, atol=1e-5)
    for computed in (*of_pairs, *of_grams, *applied):
        assert computed.isfinite().all()
    # The derivative of sum(K * K) / 2 in X is 2 K X.
    for of_gram, product in zip(of_grams, (applied[0], applied[2]), strict=True):
        torch.testing.assert_close(of_gram, 2 * product, rtol=1e-4, atol=1e-3)


def test_pairs_of_both_routes_are_put_in_order() -> None:
    x, y = torch.randn(2000, 8), torch.randn(2000, 3000)
    with RefuseToWait():
        values = pyguide.cka_pairs([x, y, x], [x, y, x])
    torch.testing.assert_close(values, torch.ones(3))


@pytest.mark.parametrize("debiased", [False, True])
def test_streaming(emulated, debiased) -> None:
    layers = [torch.randn(20, d) for d in (6, 9, 4)]
    streaming = StreamingCKA(debiased=debiased)
    with RefuseToWait():
        for _ in range(2):
            streaming.update(layers[:2], layers)
        values = streaming.compute()
    expected = pyguide.reference.cka_matrix(layers[:2], layers, debiased=debiased)
    torch.testing.assert_close(values.float(), expected, rtol=0, atol=1e-5)


def test_networks_that_are_compared(emulated) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Dropout(), torch.nn.Linear(9, 4))
    layers = LayerGrams(net, None, "network", debiased=True, precision=None, device=None)
    x, streaming = torch.randn(20, 6), StreamingCKA()
    with layers:
        streaming.update_grams(layers(x, 20))
        with RefuseToWait():
            streaming.update_grams(layers(x, 20))
    assert streaming.compute().diagonal().tolist() == pytest.approx([1, 1, 1])
