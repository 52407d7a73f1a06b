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
    return _by_rows(x, mask) if x.device.type == "cpu" else _by_elements(x, mask)


def _by_elements(x: Tensor, mask: Tensor) -> Tensor:
    """On GPUs, which need not be waited for."""
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    known = torch.where(mask, x, 0)
    return torch.where(mask, x, _mean(known, mask))


def _by_rows(x: Tensor, mask: Tensor) -> Tensor:
    """On CPUs: the padded rows alone, as `where` broadcasts a mask slower than memory is copied."""
    n, positions = mask.shape
    padded = (~mask).flatten().nonzero().squeeze(1)
    known = x.reshape(n * positions, -1).index_fill(0, padded, 0)
    mean = _mean(known.view(n, positions, -1), mask.unsqueeze(2)).squeeze(0)
    return known.index_copy(0, padded, mean.index_select(0, padded % positions)).view(x.shape)


def _mean(known: Tensor, mask: Tensor) -> Tensor:
    """Of the valid samples of each position."""
    dtype = torch.promote_types(known.dtype, torch.float32)
    total = known.sum(dim=0, keepdim=True, dtype=dtype)
    return (total / mask.sum(dim=0, keepdim=True).clamp(min=1)).to(known.dtype)
