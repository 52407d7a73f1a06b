"""The CUDA kernels through the Python operators: edges of tiles, layouts, tokens, long lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyguide
from pyguide import _native, reference
from pyguide.ops import cka_pairs_and_flags, cuda

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# Norm of a product's error relative to the product: sums in float64 and float32, and one rounding
# of each shifted feature to 16 bits, which may be larger than the centred one.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 5e-6,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


def _check_gram_and_gradient(layers: list[Tensor], relative_error, *, center: bool = True) -> None:
    """Each layer's Gram matrix and a gradient through it, against float64."""
    xs = [x.detach().requires_grad_() for x in layers]
    n = xs[0].size(0)
    weights = torch.randn(len(xs), n, n, dtype=torch.float64) / n
    grams = pyguide.gram(xs, center=center)
    grads = torch.autograd.grad((grams * weights.to(grams.dtype)).sum(), xs)
    assert torch.equal(grams, grams.mT)
    for k, x, grad, w in zip(grams, xs, grads, weights, strict=True):
        exact = x.detach().double().requires_grad_()
        expected = reference.gram([exact], center=center)[0]
        (expected_grad,) = torch.autograd.grad((expected * w).sum(), exact)
        tolerance = max(TOLERANCE[x.dtype], torch.finfo(grams.dtype).eps)
        assert relative_error(k, expected) < tolerance
        assert grad.dtype == x.dtype and grad.shape == x.shape
        assert relative_error(grad, expected_grad) < tolerance


@EVERY_DTYPE
@pytest.mark.parametrize("n", [2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 200, 257])
def test_edges_of_tiles(cuda_backend, relative_error, n, dtype) -> None:
    widths = [1, 3, 31, 32, 33, 100, 513] if n <= 65 else [3, 33, 70]
    layers = [(torch.randn(n, d) + 0.5).to(dtype) for d in widths]
    _check_gram_and_gradient(layers, relative_error)


@EVERY_DTYPE
def test_without_centring(cuda_backend, relative_error, dtype) -> None:
    layers = [(torch.randn(40, d) + 3).to(dtype) for d in (7, 64)]
    _check_gram_and_gradient(layers, relative_error, center=False)


def test_mixed_dtypes(cuda_backend, relative_error) -> None:
    layers = [torch.randn(40, 30 + i).to(dtype) for i, dtype in enumerate(DTYPES)]
    _check_gram_and_gradient(layers, relative_error)


@EVERY_DTYPE
def test_alignments_and_strides(cuda_backend, relative_error, dtype) -> None:
    n, d = 20, 70
    memory = torch.randn(n * 2 * d + 16).to(dtype)
    layers = [memory[start : start + n * d].view(n, d) for start in range(9)]
    layers += [memory.as_strided((n, d), (d + pad, 1), pad) for pad in (1, 2, 3, 4, 8)]
    layers += [memory.as_strided((n, d), (1, n + pad), pad) for pad in (0, 1, 8)]
    layers += [memory.as_strided((n, d), (2 * d, 2))]
    _check_gram_and_gradient(layers, relative_error)


@EVERY_DTYPE
@pytest.mark.parametrize("debiased", [False, True])
def test_tokens_in_any_memory_order(cuda_backend, relative_error, dtype, debiased) -> None:
    n, tokens = 33, 4
    shared = torch.randn(n, tokens, 3)

    def mixed(d: int) -> Tensor:
        return shared @ torch.randn(3, d) + torch.randn(n, tokens, d)

    x = mixed(20).to(dtype)
    y = mixed(7).transpose(0, 1).contiguous().transpose(0, 1).to(dtype)
    z = mixed(12).to(dtype)[:, :, ::2].unflatten(2, (3, 2))
    layers = [t.detach().requires_grad_() for t in (x, y, z)]
    pairs = [(0, 1), (1, 2), (2, 0)]
    values, flags = cka_pairs_and_flags(
        layers, layers, pairs=pairs, debiased=debiased, per_token=True, route="sample"
    )
    assert values.shape == (3, tokens) and not flags.any()
    exact = [t.detach().double().requires_grad_() for t in layers]
    expected = reference.cka_pairs(exact, exact, pairs=pairs, debiased=debiased, per_token=True)
    weights = torch.rand(3, tokens, dtype=torch.float64)
    grads = torch.autograd.grad((values * weights).sum(), layers)
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    # Small batches of few features: the debiased values are differences of larger terms.
    tolerance = 4 * TOLERANCE[dtype] if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance)
    for grad, t, expected_grad in zip(grads, layers, expected_grads, strict=True):
        assert grad.stride() == torch.empty_like(t).stride()
        assert relative_error(grad, expected_grad) < 4 * tolerance


def test_more_layers_and_pairs_than_a_launch_takes(cuda_backend, relative_error) -> None:
    layers = [torch.randn(8, 2 + i % 5, requires_grad=True) for i in range(300)]
    pairs = [(i % 300, (i * 7 + i // 300) % 300) for i in range(3000)]
    values = pyguide.cka_pairs(layers, layers, pairs=pairs)
    weights = torch.rand(len(pairs), dtype=torch.float64)
    grads = torch.autograd.grad((values * weights).sum(), layers)
    exact = [x.detach().double().requires_grad_() for x in layers]
    grams = reference.gram(exact)
    norms = torch.linalg.matrix_norm(grams)
    left, right = torch.tensor(pairs).T
    expected = (grams[left] * grams[right]).sum(dim=(1, 2)) / (norms[left] * norms[right])
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert relative_error(grad, expected_grad) < 1e-5


def test_a_large_upstream_gradient_meets_half_only_at_the_end(cuda_backend, relative_error) -> None:
    # A GradScaler's 65536 must multiply in float32: the bare gradient is far below half's range.
    x = (torch.randn(64, 500) + 2).half().requires_grad_()
    y = torch.randn(64, 300).half()
    (scaled,) = torch.autograd.grad(pyguide.cka(x, y, debiased=True) * 65536.0, x)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(
        65536.0 * reference.cka(exact, y.double(), debiased=True), exact
    )
    assert relative_error(scaled, expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("scale", [1e-17, 1e17])
def test_gradients_at_the_ends_of_float32(cuda_backend, relative_error, scale) -> None:
    # Coefficients near 1e-37 have no digits to spare for the second term that they are split into.
    x, y = (torch.randn(20, d) * scale for d in (100, 50))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(pyguide.cka(x, y), x)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.cka(exact, y.double()), exact)
    assert relative_error(grad, expected) < TOLERANCE[torch.float32]


def test_a_negligible_layer_keeps_its_gradient_beside_a_large_one(
    cuda_backend, relative_error
) -> None:
    # The scale of 16-bit coefficients is each layer's own.
    x = (torch.randn(32, 50) * 1e-3).bfloat16().requires_grad_()
    y = (torch.randn(32, 50) * 1e3).bfloat16().requires_grad_()
    z = torch.randn(32, 60)
    value = pyguide.cka_pairs([x, y], [z, z], debiased=True).sum()
    for t, grad in zip((x, y), torch.autograd.grad(value, (x, y)), strict=True):
        exact = t.detach().double().requires_grad_()
        cka = reference.cka(exact, z.double(), debiased=True)
        assert relative_error(grad, torch.autograd.grad(cka, exact)[0]) < TOLERANCE[t.dtype]


def _step(layers: list[Tensor]) -> list[Tensor]:
    """Values of all pairs of neighbours and their gradients."""
    pairs = [(i, (i + 1) % len(layers)) for i in range(len(layers))]
    values = pyguide.cka_pairs(layers, layers, pairs=pairs, debiased=True)
    return [values, *torch.autograd.grad(values.sum(), layers)]


@pytest.mark.parametrize("n", [40, 130])
def test_the_same_bits_every_time(cuda_backend, request, n) -> None:
    layers = [
        torch.randn(n, d).to(dtype).requires_grad_()
        for d, dtype in zip((200, 30, 90, 150), DTYPES, strict=True)
    ]
    results = []
    for seed in range(3):
        if cuda_backend == "emulated":  # threads and blocks take turns in another order
            request.getfixturevalue("emulator").seed(seed)
        results.append(_step(layers))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize("n, most", [(16, 5), (128, 5), (200, 5), (257, 8)])
def test_a_step_takes_as_many_launches_for_many_layers_as_for_two(
    emulated, emulator, n, most
) -> None:
    counts = []
    for layers in (2, 60 if n <= 128 else 3):
        xs = [torch.randn(n, 3 + i, requires_grad=True) for i in range(layers)]
        emulator.launches()
        _step(xs)
        counts.append(emulator.launches())
    assert counts[0] == counts[1] <= most


def test_launches_at_the_most_layers_and_pairs_that_one_takes(emulated, emulator) -> None:
    layers = [torch.randn(4, 2, requires_grad=True) for _ in range(256)]
    pairs = [(i % 256, (7 * i + 1) % 256) for i in range(1024)]  # each in two layers' gradients
    emulator.launches()
    pyguide.cka_pairs(layers, layers, pairs=pairs).sum().backward()
    assert emulator.launches() == 5


def test_tokens_take_no_more_launches(emulated, emulator) -> None:
    x = torch.randn(8, 50, 4, requires_grad=True)
    emulator.launches()
    pyguide.CKALoss(per_token=True)([x], [torch.randn(8, 50, 4)]).backward()
    assert emulator.launches() <= 5


@pytest.mark.parametrize("center", [False, True])
def test_large_batches_go_layer_by_layer(cuda_backend, monkeypatch, relative_error, center) -> None:
    monkeypatch.setattr(cuda, "_LARGEST_BATCH_AT_ONCE", 16)
    layers = [torch.randn(20, d, requires_grad=True) for d in (5, 60, 33)]
    _check_gram_and_gradient(layers, relative_error, center=center)
    exact = [x.detach().double().requires_grad_() for x in layers]
    values, *grads = _step(layers)
    monkeypatch.undo()
    pairs = [(0, 1), (1, 2), (2, 0)]
    expected = reference.cka_pairs(exact, exact, pairs=pairs, debiased=True)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert relative_error(grad, expected_grad) < 1e-5


def test_tokens_of_large_batches_go_layer_by_layer(
    cuda_backend, monkeypatch, relative_error
) -> None:
    monkeypatch.setattr(cuda, "_LARGEST_BATCH_AT_ONCE", 16)
    layers = [torch.randn(20, 3, d, requires_grad=True) for d in (5, 60, 33)]
    options = {"pairs": [(0, 1), (1, 2), (2, 0)], "per_token": True}
    values = pyguide.cka_pairs(layers, layers, **options)
    exact = [x.detach().double().requires_grad_() for x in layers]
    expected = reference.cka_pairs(exact, exact, **options)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    weights = torch.rand(3, 3, dtype=torch.float64)
    grads = torch.autograd.grad((values * weights).sum(), layers)
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert relative_error(grad, expected_grad) < 1e-5


def test_workspace_does_not_grow_with_the_layers_of_a_large_batch(emulated, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "_LARGEST_BATCH_AT_ONCE", 16)
    needed: list[int] = []
    monkeypatch.setattr(cuda, "_check_memory", lambda device, bytes: needed.append(bytes))
    n = 20
    for count in (2, 6):
        _step([torch.randn(n, 50, requires_grad=True) for _ in range(count)])
    forward, backward = needed[::2], needed[1::2]
    assert forward[1] - forward[0] == 4 * 4 * n * n  # the Gram matrices that backward needs
    assert backward[0] == backward[1] == 4 * n * 32


def test_too_little_memory_raises_before_any_launch(emulated, emulator, monkeypatch) -> None:
    x = torch.randn(64, 30, requires_grad=True)
    layers = [x, torch.randn(64, 40), torch.randn(64, 50)]
    grams = 3 * 4 * 64 * 64
    value, gram = pyguide.cka_matrix(layers).sum(), pyguide.gram(layers).sum()
    monkeypatch.setattr(cuda, "_memory", lambda device: 2 * grams)  # half of it is not enough
    emulator.launches()
    with pytest.raises(torch.OutOfMemoryError, match=r"needs \d+ bytes .* fewer layers a call"):
        pyguide.cka_matrix(layers)
    monkeypatch.setattr(cuda, "_memory", lambda device: 1)
    with pytest.raises(torch.OutOfMemoryError, match="smaller batch"):
        value.backward()
    with pytest.raises(torch.OutOfMemoryError):
        gram.backward()
    with pytest.raises(torch.OutOfMemoryError):
        pyguide.gram(layers)
    assert emulator.launches() == 0


@pytest.mark.parametrize("n", [2, 32, 33, 64, 480, 481, 512, 4096])
def test_statistics_have_the_shape_that_the_kernels_fill(emulated, n) -> None:
    assert cuda.stats_shape(3, n) == (3, _native.cuda.stat_chunks(n), 2)


def test_what_the_operators_save_is_what_they_say(cuda_backend) -> None:
    layers = [torch.randn(9, 2, 3), torch.randn(9, 2, 5)]
    for per_token in (False, True):
        options = ([0], [1], False, per_token, 0)
        torch.library.opcheck(
            torch.ops.pyguide.cka_sample_space.default,
            (layers, *options),
            test_utils=("test_schema", "test_faketensor"),
        )
