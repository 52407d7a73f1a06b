"""A network with BatchNorm and Dropout, and guided training of it, that tests share."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from pyguide.guidance import Guidance

N = 48


class Net(nn.Module):
    """Linear, BatchNorm, ReLU, Dropout blocks and a head."""

    def __init__(self, depth: int, width: int, seed: int, dropout: float = 0.1):
        super().__init__()
        torch.manual_seed(seed)
        widths = [10] + [width] * depth
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(dtype: torch.dtype = torch.float32, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 10, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(4, (N,), generator=generator)


def step(target, guidance, x, y, optimizer=None, **options) -> torch.Tensor:
    with guidance.capture():
        logits = target(x)
    loss = guidance.total_loss(F.cross_entropy(logits, y), x, **options)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    guidance.step()
    return loss.detach()


class Calls:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, module, args) -> None:
        self.count += 1


def by_hand(model: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the Linear layers, from the layers' own functions; no dropout."""
    outputs = {}
    for i, block in enumerate(model.blocks):
        outputs[f"blocks.{i}.0"] = x = block[0](x)
        x = block[2](block[1](x))
    outputs["head"] = model.head(x)
    return outputs


def train(steps: int, **options) -> tuple[Net, Net, Guidance, Calls]:
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    calls = Calls(guide)
    guidance = Guidance(target, guide, **options)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    torch.manual_seed(5)
    for _ in range(steps):
        step(target, guidance, x, y, optimizer)
    return target, guide, guidance, calls
