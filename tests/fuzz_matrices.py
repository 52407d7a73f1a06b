"""Matrices in every layout, outputs between guards, and comparison with float64, for the fuzz."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from pyguide import _native
from pyguide.ops.views import DTYPE_CODES

DTYPES = list(DTYPE_CODES)
GUARD = 64  # bytes before and after each output
FILL = 0xA5


class Mismatch(AssertionError):
    """A wrong answer, or memory written that must not be."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Mismatch(message)


def expect_close(actual: Tensor, expected: Tensor, bound: Tensor | float, what: str) -> None:
    error = (actual.double() - expected).abs()
    same = actual.isnan() & expected.isnan()
    expect((same | (error <= bound)).all(), f"{what}: off by {error.max():.3e}, bound {bound}")


class Matrix:
    """Tokens of n x d at any element of a buffer, which is otherwise NaN or a fill pattern."""

    def __init__(
        self, rng: random.Random, dtype: torch.dtype, n: int, d: int, tokens: int, output: bool
    ):
        shape = (tokens, n, d)
        strides = _strides(rng, tokens, n, d, output)
        size = dtype.itemsize
        first = GUARD // size + rng.randrange(8)
        used = torch.tensor(first)
        for count, stride in zip(shape, strides, strict=True):
            used = used[..., None] + torch.arange(count) * stride
        self.used = used.flatten()
        memory = torch.full((int(used.max()) + 1 + GUARD // size,), float("nan"), dtype=dtype)
        if output:
            memory.view(torch.uint8).fill_(FILL)
        self.memory = memory
        self.values = memory.as_strided(shape, strides, first)
        address = memory.data_ptr() + first * size
        self.view = (address, DTYPE_CODES[dtype], n, d, *strides[1:], tokens, strides[0])

    def randomize(self, rng: random.Random) -> Matrix:
        scale, offset = rng.choice([1e-2, 1, 10]), rng.choice([0, 1, 30])
        cells = self.used.unique()
        self.memory[cells] = (torch.randn(len(cells)) * scale + offset).to(self.memory.dtype)
        return self

    def check_guards(self) -> None:
        between = torch.ones(len(self.memory), dtype=torch.bool)
        between[self.used] = False
        expect(
            (self.memory.view(torch.uint8).view(len(self.memory), -1)[between] == FILL).all(),
            "memory beside an output was written",
        )


def _strides(rng: random.Random, tokens: int, n: int, d: int, output: bool) -> tuple[int, ...]:
    """Strides of tokens, rows and columns."""
    gap, step = rng.randrange(4), rng.randrange(1, 4)
    row = tokens * (d + gap)
    layouts = [
        (n * (d + gap) + step, d + gap, 1),
        (d * (n + gap) + step, 1, n + gap),
        ((d * step + gap) * n, d * step + gap, step),
        ((n * step + gap) * d, step, n * step + gap),
        (d, row, 1),  # as in an (n, T, d) tensor
        (1, row, tokens),
    ]
    if not output:
        layouts += [(1, 0, 1), (0, 1, 0), (2, 1, 1), (0, 0, 0)]
    return rng.choice(layouts)


class Output:
    """A contiguous tensor between guards."""

    def __init__(self, dtype: torch.dtype, *shape: int):
        count = torch.Size(shape).numel()
        self.memory = torch.full((2 * GUARD + count * dtype.itemsize,), FILL, dtype=torch.uint8)
        inside = self.memory[GUARD : len(self.memory) - GUARD]
        self.tensor = inside.view(dtype).view(shape)

    def address(self) -> int:
        return self.tensor.data_ptr()

    def check_guards(self) -> None:
        ends = torch.cat([self.memory[:GUARD], self.memory[-GUARD:]])
        expect((ends == FILL).all(), "memory beside an output was written")


def settings(rng: random.Random) -> tuple[int, str]:
    """Threads and instruction set of a call."""
    return rng.randint(1, 5), rng.choice(["", *_native.instruction_sets()])
