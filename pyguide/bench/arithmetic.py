"""In which type layers are stored, and how exactly their products are formed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["ARITHMETIC", "Arithmetic"]


@dataclass(frozen=True)
class Arithmetic:
    """A dtype of the layers and torch's float32 matmul precision, which all candidates follow.

    Attributes
    ----------
    dtype : torch.dtype, optional
        None leaves each workload its own.
    in_16_bits : bool
        Whether the numbers that are multiplied have 16 bits.
    """

    name: str
    description: str
    precision: str
    dtype: torch.dtype | None = None
    in_16_bits: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Set torch's precision, and restore it."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


# bf16 lets torch use TF32 for what its candidates compute in float32: users who care would.
ARITHMETIC = {
    a.name: a
    for a in (
        Arithmetic("highest", "float32 products", "highest"),
        Arithmetic("high", "float32 layers, TF32 products", "high"),
        Arithmetic(
            "medium",
            "float32 layers, bfloat16 products (torch's own: TF32)",
            "medium",
            in_16_bits=True,
        ),
        Arithmetic("bf16", "bfloat16 layers", "high", torch.bfloat16, in_16_bits=True),
    )
}
