"""A network with BatchNorm and dropout that tests in several processes share."""

from __future__ import annotations

import torch
from torch import nn


def blocks(width: int, seed: int) -> nn.Sequential:
    """Two blocks ("0", "1") whose first layers are "0.0" and "1.0", and an output layer ("2")."""
    torch.manual_seed(seed)
    hidden = [
        nn.Sequential(nn.Linear(d, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        for d in (10, width)
    ]
    return nn.Sequential(*hidden, nn.Linear(width, 4)).double()


def batch(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=generator)
