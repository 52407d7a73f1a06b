"""Small calls of every CUDA kernel, checked against float64: what compute-sanitizer runs.

A script, since under a sanitizer pytest's own work would take most of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import pyguide
from pyguide import reference
from pyguide.ops import cka_pairs_and_flags, cuda
from pyguide.ops.dispatch import backend_of

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

# dtype, precision, and how far a value and a gradient may be off.
ARITHMETIC = [
    (torch.float64, "highest", 1e-12, 1e-10),
    (torch.float32, "highest", 1e-5, 1e-5),
    (torch.float32, "high", 1e-3, 5e-3),
    (torch.float32, "medium", 5e-3, 3e-2),
    (torch.bfloat16, "highest", 5e-3, 3e-2),
    (torch.float16, "highest", 1e-3, 5e-3),
]

# Few samples, one tile of each size, several of them, rows centred by a kernel of their own, and
# chained sums.
SAMPLES = (5, 64, 100, 130, 300, 520)


def on_device(x: Tensor) -> Tensor:
    """A copy there with the same strides and, of a view, the same offset."""
    base = x if x._base is None else x._base
    moved = torch.empty_strided(base.size(), base.stride(), dtype=x.dtype, device=DEVICE)
    return moved.copy_(base).as_strided(x.size(), x.stride(), x.storage_offset())


def related(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Layers (n, ...) that share a signal."""
    signal = torch.randn(shapes[0][0])
    return [0.5 * signal.view(-1, *[1] * (len(s) - 1)) + torch.randn(s) for s in shapes]


def check(
    loss: Callable[..., Tensor],
    exact_loss: Callable[..., Tensor],
    layers: list[Tensor],
    tolerance: tuple[float, float],
) -> None:
    """A loss of layers and its gradients against another one of the same layers in float64."""
    moved = [on_device(x).detach().requires_grad_() for x in layers]
    value = loss(moved)
    gradients = [g.cpu() for g in torch.autograd.grad(value, moved)]
    doubles = [x.double().requires_grad_() for x in layers]
    expected = exact_loss(doubles)
    exact = torch.autograd.grad(expected, doubles)
    off = abs(value.item() - expected.item()) / max(1.0, abs(expected.item()))
    assert off <= tolerance[0], f"value {value.item()}, not {expected.item()}"
    for gradient, wanted in zip(gradients, exact, strict=True):
        off = ((gradient.double() - wanted).norm() / wanted.norm()).item()
        assert off <= tolerance[1], f"gradient off by {off}"


def cka_case(layers: list[Tensor], tolerance: tuple[float, float], **options: object) -> None:
    """CKA of every layer with the first: all kernels of a training step."""
    pairs = [(0, i) for i in range(1, len(layers))]
    exact = {k: v for k, v in options.items() if k != "precision"}

    def loss(xs: list[Tensor]) -> Tensor:
        return cka_pairs_and_flags(xs, xs, pairs=pairs, route="sample", **options)[0].sum()

    def exact_loss(xs: list[Tensor]) -> Tensor:
        return reference.cka_pairs(xs, xs, pairs=pairs, **exact).sum()

    check(loss, exact_loss, layers, tolerance)


def cases() -> Iterator[None]:
    """Runs one case an item."""
    for (dtype, precision, *tolerance), n in itertools.product(ARITHMETIC, SAMPLES):
        layers = [x.to(dtype) for x in related((n, 33), (n, 1), (n, 72))]
        cka_case(layers, tuple(tolerance), precision=precision, debiased=n % 4 == 0)
        yield
    for dtype, precision, *tolerance in ARITHMETIC:
        options = {"precision": precision}
        x, y = (x.to(dtype) for x in related((66, 65), (66, 40)))
        cka_case([x[:, 1:], y.T.contiguous().T], tuple(tolerance), **options)
        yield
        tokens = [x.to(dtype) for x in related((20, 9, 30), (20, 9, 17))]
        cka_case(tokens, tuple(tolerance), per_token=True, **options)
        yield
        images = [x.to(dtype) for x in related((24, 5, 4, 4), (24, 3, 4, 4))]
        channels_last = [x.contiguous(memory_format=torch.channels_last) for x in images]
        cka_case(channels_last, tuple(tolerance), **options)
        yield
        weights = torch.randn(2, 30, 30).double()
        check(
            lambda xs, w=weights: (pyguide.gram(xs, center=False) * on_device(w).float()).sum(),
            lambda xs, w=weights: (reference.gram(xs, center=False) * w).sum(),
            [x.to(dtype) for x in related((30, 50), (30, 21))],
            tuple(max(t, 1e-5) for t in tolerance),
        )
        yield
    cka_case(related(*[(8, 3 + i % 5) for i in range(300)]), (1e-5, 1e-5))
    yield


def main() -> None:
    assert backend_of(DEVICE) is cuda, "no GPU, and not the emulator"
    torch.manual_seed(0)
    count = sum(1 for _ in cases())
    print(f"{count} cases agree with float64")


if __name__ == "__main__":
    main()
