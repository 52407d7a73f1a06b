"""Transformers over tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["CausalTransformer", "TransformerClassifier", "sinusoids"]


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of positions 0 to length - 1, (length, width), width even.

    Column 2 i is ``sin(p / 10000^(2 i / width))``, column 2 i + 1 its cosine (Vaswani et al.
    2017, arXiv 1706.03762, section 3.5).

    Examples
    --------
    >>> from pyguide.experiments.networks.transformer import sinusoids
    >>> sinusoids(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class CausalTransformer(nn.Module):
    """An embedding, blocks in which a position attends to itself and earlier ones, an output.

    The blocks have weights of their own. Normalisation comes before attention and feed-forward
    layer, and once more before the output. Positions are sines and cosines, so that any length can
    be read.

    Parameters
    ----------
    vocabulary, outputs : int
        Different tokens of the input; logits of a position.
    width : int
        Features of a position; even, and a multiple of `heads`.
    layers, heads : int
    dropout : float

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import CausalTransformer
    >>> network = CausalTransformer(13, 10, width=16, layers=3, heads=4)
    >>> network(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 7, 10])
    """

    def __init__(
        self,
        vocabulary: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        heads: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, T, outputs) of tokens (n, T)."""
        length = tokens.size(1)
        later = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.dropout(_embedded(self.embedding, tokens))
        for layer in self.layers:
            x = layer(x, src_mask=later, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


class TransformerClassifier(nn.Module):
    """An encoder whose output is read from the mean of the positions before the padding.

    Blocks as torch ships them, with normalisation after attention and feed-forward layer; padding
    is attended to by no position.

    Parameters
    ----------
    vocabulary, outputs : int
        Different tokens of the input; logits of a sequence.
    width, layers, heads, dropout
        As in :class:`CausalTransformer`.
    feed_forward : int
        Units of a block's feed-forward layer.
    padding : int
        The token after the end of a sequence.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import TransformerClassifier
    >>> network = TransformerClassifier(3, 2, width=16, layers=1, heads=4, padding=2)
    >>> network(torch.tensor([[0, 1, 1, 2], [1, 0, 1, 1]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        vocabulary: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        heads: int,
        padding: int,
        feed_forward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, outputs) of tokens (n, T)."""
        padding = tokens == self.padding
        x = self.dropout(_embedded(self.embedding, tokens))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        x = x.masked_fill(padding.unsqueeze(2), 0.0)
        mean = x.sum(dim=1) / (~padding).sum(dim=1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits


def _embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    x: Tensor = embedding(tokens)
    return x + sinusoids(tokens.size(1), x.size(2), x.device).to(x.dtype)
