"""Padding masks: which samples count at which position of a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyguide.capture.padding import has_positions, valid_positions
from pyguide.capture.recorder import Captured

__all__ = [
    "check_mask",
    "gathered",
    "position_groups",
    "same",
    "valid_in_both",
]


def check_mask(mask: Tensor, layers: Iterable[Tensor], *, per_token: bool) -> None:
    """Raise unless the mask is (n, T) bool and some layer is (n, T, ...)."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.dim() != 2:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise TypeError(
            "mask must be a bool tensor of shape (n, T), True where a position is valid, got "
            f"{got}; for Hugging Face's attention_mask pass attention_mask.bool()"
        )
    shapes = [tuple(x.shape) for x in layers]
    if not any(has_positions(shape, mask, per_token=per_token) for shape in shapes):
        raise ValueError(
            f"mask is (n, T) = {tuple(mask.shape)}, but no layer is (n, T, ...) with these: their "
            f"shapes are {', '.join(map(str, shapes))}"
        )


def valid_in_both(x: Captured, y: Captured, mask: Tensor | None) -> Tensor | None:
    """The (n, T) mask of two layers that are compared per token."""
    a, b = (valid_positions(c.tensor, c.mask, mask, per_token=True) for c in (x, y))
    return a & b if a is not None and b is not None else (b if a is None else a)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two masks, or none, are equal. Reads masks that are two objects."""
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def position_groups(mask: Tensor, min_samples: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Positions (G,) with equally many valid samples m, and which samples those are: (m, G).

    The samples are None where all are valid. Positions with fewer than `min_samples` are left
    out. Reads the mask, so it waits for the device.
    """
    counts = mask.sum(dim=0)
    for m in sorted(set(counts.tolist())):
        if m < min_samples:
            continue
        positions = (counts == m).nonzero().squeeze(1)
        if m == mask.size(0):
            yield positions, None
        else:
            samples = mask.T[positions].nonzero()[:, 1]
            yield positions, samples.view(len(positions), m).T


def gathered(x: Tensor, positions: Tensor, samples: Tensor | None) -> Tensor:
    """The (m, G, ...) part of x (n, T, ...) that :func:`position_groups` names."""
    if samples is not None:
        return x[samples, positions]
    return x if len(positions) == x.size(1) else x.index_select(1, positions)
