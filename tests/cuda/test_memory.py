"""What a call takes beyond its results."""

from __future__ import annotations

import pytest
import torch
from layers import related

import pyguide
from pyguide.ops import cuda


def test_a_call_over_the_budget_raises_before_it_starts(device, small, monkeypatch):
    memory = 1 << 14
    monkeypatch.setattr(cuda, "_memory", lambda device: memory)
    x, y = related(64, 100, 100, device=device)
    with pytest.raises(torch.OutOfMemoryError, match=r"needs \d+ bytes .* smaller batch"):
        pyguide.cka(x, y)
    monkeypatch.undo()


@pytest.mark.cuda
@pytest.mark.parametrize("layers", [2, 12])
def test_workspace_does_not_grow_with_the_layers_of_large_batches(layers):
    n, d, device = 4096, 512, torch.device("cuda")
    xs = [x.requires_grad_() for x in related(n, *[d] * layers, device=device)]
    pairs = [(i, i + 1) for i in range(layers - 1)]

    def step() -> None:
        values = pyguide.ops.cka_pairs_and_flags(xs, xs, pairs=pairs, route="sample")[0]
        torch.autograd.grad(values.sum(), xs)

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated() - before
    results = layers * (4 * n * n + 4 * n * d)  # Gram matrices and gradients
    # Coefficients of one layer, and its partial sums.
    assert peak < results + 6 * 4 * n * n
