"""Parity: whether a string of bits has an odd number of ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyguide.data.splits import Splits, TensorSplit

__all__ = ["PADDING", "VOCABULARY", "are_among", "bit_strings", "parity_splits"]

#: The token after the end of a shorter string; the others are the bits 0 and 1.
PADDING = 2
VOCABULARY = 3


def bit_strings(
    lengths: Tensor, generator: torch.Generator, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Random bits and their parities.

    Parameters
    ----------
    lengths : Tensor
        (n,) int64, of each string.
    generator : torch.Generator
    width : int, optional
        Columns of the result; the longest length by default.

    Returns
    -------
    x, y : Tensor
        (n, width) int64 of bits, then :data:`PADDING`; (n,) int64, 1 where the number of ones is
        odd.

    Examples
    --------
    >>> import torch
    >>> from pyguide.data.parity import bit_strings
    >>> x, y = bit_strings(torch.tensor([2, 4]), torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([2, 4]), torch.Size([2]))
    """
    width = int(lengths.max()) if width is None else width
    bits = torch.randint(2, (len(lengths), width), generator=generator)
    valid = torch.arange(width) < lengths.unsqueeze(1)
    return torch.where(valid, bits, PADDING), (bits * valid).sum(dim=1) % 2


def are_among(x: Tensor, others: Tensor) -> Tensor:
    """Which strings are among others, (n,) bool: of (n, T) and (N, U) bits and padding.

    Examples
    --------
    >>> import torch
    >>> from pyguide.data.parity import are_among
    >>> are_among(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1, 2], [1, 1, 0]]))
    tensor([ True, False])
    """
    known = set(map(_bits, others.tolist()))
    return torch.tensor([_bits(row) in known for row in x.tolist()], dtype=torch.bool)


def _bits(row: list[int]) -> bytes:
    return bytes(bit for bit in row if bit != PADDING)


def parity_splits(
    min_length: int,
    max_length: int,
    sizes: tuple[int, int, int],
    seed: int,
    device: str = "cpu",
) -> Splits:
    """Training, validation and test strings, drawn once; each length is equally likely.

    There are few short strings, so these are in every split; of n bits there are 2^n.

    Parameters
    ----------
    min_length, max_length : int
        Of the strings, in bits.
    sizes : (int, int, int)
        Strings to train, validate and test on.
    seed : int
        Of the data.
    device : str
        Where the tensors go.
    """
    generator = torch.Generator().manual_seed(seed)

    def part(size: int) -> TensorSplit:
        lengths = torch.randint(min_length, max_length + 1, (size,), generator=generator)
        x, y = bit_strings(lengths, generator, max_length)
        return TensorSplit(x.to(device), y.to(device))

    train, val, test = (part(size) for size in sizes)
    return Splits(train, val, test, classes=2)
