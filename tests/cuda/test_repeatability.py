"""The same input gives the same bits, and a call leaves its input alone."""

from __future__ import annotations

import pytest
import torch
from layers import related

import pyguide


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [40, 200])
def test_values_and_gradients_repeat_bit_for_bit(device, small, dtype, n):
    scale = 1 if small else 1000
    widths = (70 * scale, 33 * scale, 5 * scale)
    layers = [x.requires_grad_() for x in related(n, *widths, dtype=dtype, device=device)]
    before = [x.detach().clone() for x in layers]

    def step() -> list[torch.Tensor]:
        values = pyguide.cka_pairs(layers, layers, pairs=[(0, 1), (1, 2), (0, 2)])
        return [values, *torch.autograd.grad(values.sum(), layers)]

    first = step()
    for _ in range(2 if small else 10):
        again = step()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, layers, strict=True))
