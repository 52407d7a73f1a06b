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


def filled(x: Tensor, mask: Tensor | None, samples: int | None = None) -> Tensor:
    """x with padding replaced by the mean of its position's valid samples.

    A padded sample is then an average one there: centred, its features are zero and add
    nothing to any inner product. A position without valid samples is zero everywhere.

    Parameters
    ----------
    x : Tensor
        (n, T, ...).
    mask : Tensor or None
        (n, T) bool, True where it is valid.
    samples : int, optional
        How many samples, from the first, the mean is of: all by default, and with 0 it is zero.
        See :meth:`pyguide.distances.Distance.samples_of_origin`.
    """
    if mask is None:
        return x
    by_rows = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return (_by_rows if by_rows else _by_elements)(x, mask, samples)


def _by_elements(x: Tensor, mask: Tensor, samples: int | None) -> Tensor:
    """Shapes depend on no value, so no device is waited for."""
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    mean = _mean(torch.where(mask, x, 0)[:samples], mask[:samples])
    return torch.where(mask, x, mean.to(x.dtype))


def _by_rows(x: Tensor, mask: Tensor, samples: int | None) -> Tensor:
    """The padded rows alone are written: on CPUs `where` is slow where it broadcasts the mask.

    With the gradient 1.7 (quartiles 1.5, 1.9) times faster there: float32 (256, 25, 128), a sixth
    of it padded, one thread of an AMD EPYC with AVX2.
    """
    padded = mask.logical_not().flatten().nonzero().squeeze(1)
    known = x.flatten(0, 1).index_fill(0, padded, 0)
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    mean = _mean(known.view(x.shape)[:samples], mask[:samples]).squeeze(0)
    # Cast last: the gradient of the mean is a sum over rows, and in float32.
    rows = mean.index_select(0, padded % max(mask.size(1), 1)).to(x.dtype)
    return known.index_copy(0, padded, rows).view(x.shape)


def _mean(known: Tensor, mask: Tensor) -> Tensor:
    """Of the valid samples of each position, in float32 at least."""
    dtype = torch.promote_types(known.dtype, torch.float32)
    total = known.sum(dim=0, keepdim=True, dtype=dtype)
    return total / mask.sum(dim=0, keepdim=True).clamp(min=1)
