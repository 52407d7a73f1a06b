"""The deep fully connected target and the one-dimensional ResNet that guides it."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DeepFCN", "ResNet1D"]


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
    >>> from pyguide.experiments.models import DeepFCN
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


class _BasicBlock(nn.Module):
    """Two 3-wide convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv1d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm1d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet1D(nn.Module):
    """A ResNet over signals: 13 convolutions, average pooling and a linear output.

    A stem, then five basic blocks of ``width``, ``2 width`` and ``4 width`` channels; the
    length halves where the width doubles. Like the paper's ResNet-18, its representation
    has one layer a convolution and the pooled features: 14 in all.

    Parameters
    ----------
    width : int
        Channels of the stem.
    classes : int
        Number of classes.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.models import ResNet1D
    >>> ResNet1D()(torch.randn(8, 40)).shape
    torch.Size([8, 10])
    """

    def __init__(self, *, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm1d(width)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(
            _BasicBlock(width, width, stride=1),
            _BasicBlock(width, 2 * width, stride=2),
            _BasicBlock(2 * width, 2 * width, stride=1),
            _BasicBlock(2 * width, 4 * width, stride=2),
            _BasicBlock(4 * width, 4 * width, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of signals (n, length)."""
        x = self.relu(self.bn(self.stem(x.unsqueeze(1))))
        return self.head(self.pool(self.blocks(x)).flatten(1))
