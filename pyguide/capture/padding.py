"""Padded positions of sequences."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["filled"]


def filled(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with padding replaced by the mean of its position's valid samples.

    A padded sample is then an average one there: centred, its features are zero and add
    nothing to any inner product. A position without valid samples is zero everywhere.
    """
    if mask is None:
        return x
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    known = torch.where(mask, x, 0)
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean = known.sum(dim=0, keepdim=True, dtype=dtype) / mask.sum(dim=0, keepdim=True).clamp(min=1)
    return torch.where(mask, x, mean.to(x.dtype))
