"""How often a tensor was changed in place."""

from __future__ import annotations

from torch import Tensor

__all__ = ["version_of"]


def version_of(x: Tensor) -> int | None:
    """How often x was changed in place; None for inference tensors, which do not count it."""
    return None if x.is_inference() else x._version
