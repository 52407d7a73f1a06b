"""The one-dimensional ResNet that guides on MNIST-1D."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ResNet1D"]


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
    >>> from pyguide.experiments.networks import ResNet1D
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
