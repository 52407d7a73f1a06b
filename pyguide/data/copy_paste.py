"""The copy-paste task: read a sequence of symbols, then write it again without seeing it.

The input is the symbols, a mark that asks for the copy, and as many blanks as there are symbols; at
the blanks the symbols are to be predicted, in their order. Nothing else is predicted: no end mark,
which the number of blanks gives away, and no padding, which is a token of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyguide.data.splits import Splits, TensorSplit
from pyguide.data.tokens import IGNORED

__all__ = ["CopyPaste"]


@dataclass(frozen=True)
class CopyPaste:
    """The generator and its tokens: symbols from 0, then the mark, the blank and padding.

    Parameters
    ----------
    min_length, max_length : int
        Of the sequences of symbols; each length is equally likely.
    symbols : int
        How many there are; each is equally likely, so a guess has the accuracy ``1 / symbols``
        and the cross-entropy ``ln(symbols)``.

    Examples
    --------
    >>> import torch
    >>> from pyguide.data.copy_paste import CopyPaste
    >>> task = CopyPaste(2, 3, symbols=10)
    >>> x, y = task.sample(4, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([4, 7]), torch.Size([4, 7]))
    """

    min_length: int
    max_length: int
    symbols: int = 10

    @property
    def mark(self) -> int:
        """The token that asks for the copy."""
        return self.symbols

    @property
    def blank(self) -> int:
        """The token in whose place a symbol is to be predicted."""
        return self.symbols + 1

    @property
    def padding(self) -> int:
        """The token after the end of a shorter sequence."""
        return self.symbols + 2

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.symbols + 3

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` sequences, padded to ``2 * max_length + 1`` tokens.

        Returns
        -------
        x, y : Tensor
            (count, 2 max_length + 1) int64: tokens; and the symbols at blanks,
            :data:`~pyguide.data.tokens.IGNORED` elsewhere.
        """
        longest = self.max_length
        lengths = torch.randint(self.min_length, longest + 1, (count, 1), generator=generator)
        symbols = torch.randint(self.symbols, (count, longest), generator=generator)
        position = torch.arange(2 * longest + 1)
        in_copy = (position > lengths) & (position <= 2 * lengths)
        # The symbol that stands at a position of the input, or is asked for at one of the copy.
        source = torch.where(in_copy, position - lengths - 1, position).clamp(max=longest - 1)
        symbol = symbols.gather(1, source)
        x = torch.where(position < lengths, symbol, self.padding)
        x = torch.where(position == lengths, self.mark, x)
        x = torch.where(in_copy, self.blank, x)
        return x, torch.where(in_copy, symbol, IGNORED)

    def splits(self, sizes: tuple[int, int, int], seed: int, device: str = "cpu") -> Splits:
        """Training, validation and test sequences, drawn once.

        Parameters
        ----------
        sizes : (int, int, int)
            Sequences to train, validate and test on.
        seed : int
            Of the data; the same for the same sizes on every machine.
        device : str
            Where the tensors go.
        """
        generator = torch.Generator().manual_seed(seed)

        def part(size: int) -> TensorSplit:
            x, y = self.sample(size, generator)
            return TensorSplit(x.to(device), y.to(device))

        train, val, test = (part(size) for size in sizes)
        return Splits(train, val, test, classes=self.symbols)
