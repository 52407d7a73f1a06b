"""Fully connected targets."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

__all__ = ["DeepFCN"]


class DeepFCN(nn.Sequential):
    """A fully connected network of ``depth`` linear layers, the output layer included.

    The first ``depth - 1`` layers are Linear, BatchNorm, ReLU, Dropout blocks of ``width``
    units, as in the Deep FCN of arXiv 2410.20035.

    Parameters
    ----------
    depth : int
        Number of Linear layers, output included; at least 2.
    in_features, width, classes : int
        Sizes of the input, of every hidden layer and of the output.
    dropout : float
        Dropout probability after every hidden layer.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import DeepFCN
    >>> DeepFCN(depth=50)(torch.randn(8, 40)).shape
    torch.Size([8, 10])
    """

    def __init__(
        self,
        depth: int,
        *,
        in_features: int = 40,
        width: int = 128,
        classes: int = 10,
        dropout: float = 0.1,
    ) -> None:
        if depth < 2:
            raise ValueError(f"depth: expected at least 2, got {depth}")
        sizes = [in_features] + [width] * (depth - 1)
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout))
            for a, b in pairwise(sizes)
        ]
        super().__init__(*blocks, nn.Linear(width, classes))
