"""Padded positions of sequences."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["filled", "has_positions", "valid_positions"]


def has_positions(shape: tuple[int, ...], mask: Tensor, *, per_token: bool = False) -> bool:
    """Whether a layer of this shape has the mask's samples and positions.

    The second axis of (n, d) layers is features, unless they are compared per token.
    """
    return shape[:2] == tuple(mask.shape) and (per_token or len(shape) > 2)


def valid_positions(
    x: Tensor, own: Tensor | None, mask: Tensor | None, *, per_token: bool = False
) -> Tensor | None:
    """The (n, T) mask of one layer: its own, the user's if it fits, or both."""
    if mask is None or not has_positions(tuple(x.shape), mask, per_token=per_token):
        return own
    mask = mask.to(x.device)
    return mask if own is None else mask & own


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
