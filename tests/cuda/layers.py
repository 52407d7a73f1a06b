"""Layers that share a signal, made on the CPU so that they are the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def related(
    n: int, *widths: int, seed: int = 0, dtype: torch.dtype = torch.float32, device="cpu"
) -> list[Tensor]:
    """Layers of these widths with unit variance, whose CKA is neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 8, generator=generator)
    layers = []
    for d in widths:
        mixing = torch.randn(8, d, generator=generator) / 8**0.5
        noise = torch.randn(n, d, generator=generator)
        layers.append((0.6 * signal @ mixing + 0.8 * noise).to(device, dtype))
    return layers
