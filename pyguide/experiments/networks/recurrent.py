"""Recurrent networks over tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RNN", "RNNClassifier"]


class RNN(nn.Module):
    """An embedding, Elman layers with tanh, and a linear output at every position.

    Each layer starts from a state of zeros, and sees the outputs of the one before it, so an
    output depends on no later token.

    Parameters
    ----------
    vocabulary, outputs : int
        Different tokens of the input; logits of a position.
    width : int
        Units of the embedding and of every layer.
    layers : int

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import RNN
    >>> RNN(13, 10, width=16, layers=3)(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 7, 10])
    """

    def __init__(self, vocabulary: int, outputs: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        # One module a layer, whose outputs at all positions are what is compared.
        self.layers = nn.ModuleList(nn.RNN(width, width, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, outputs)

    def features(self, tokens: Tensor) -> Tensor:
        """Outputs (n, T, width) of the last layer."""
        x: Tensor = self.embedding(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, T, outputs) of tokens (n, T)."""
        logits: Tensor = self.head(self.features(tokens))
        return logits


class RNNClassifier(RNN):
    """An :class:`RNN` with one output a sequence, read at its last token before the padding.

    Parameters
    ----------
    padding : int
        The token after the end of a sequence.
    vocabulary, outputs, width, layers
        As in :class:`RNN`.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import RNNClassifier
    >>> network = RNNClassifier(3, 2, width=16, layers=1, padding=2)
    >>> network(torch.tensor([[0, 1, 1, 2], [1, 0, 1, 1]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self, vocabulary: int, outputs: int, *, width: int, layers: int, padding: int
    ) -> None:
        super().__init__(vocabulary, outputs, width=width, layers=layers)
        self.padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, outputs) of tokens (n, T)."""
        x = self.features(tokens)
        last = (tokens != self.padding).sum(dim=1) - 1
        logits: Tensor = self.head(x[torch.arange(len(x), device=x.device), last])
        return logits
