"""One-dimensional ResNets for MNIST-1D, and their twins without shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ResNet1D"]


class _BasicBlock(nn.Module):
    """Two 3-wide convolutions around a shortcut (He et al. 2016), or without one."""

    def __init__(self, in_channels: int, channels: int, stride: int, skips: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()
        self.skips = skips
        if skips:
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or in_channels != channels:
                self.shortcut = nn.Sequential(
                    nn.Conv1d(in_channels, channels, 1, stride, bias=False),
                    nn.BatchNorm1d(channels),
                )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x) if self.skips else out)


class ResNet1D(nn.Module):
    """A ResNet over signals: a stem, stages of basic blocks, average pooling, a linear output.

    The first stage has ``width`` channels; each later one doubles the channels and halves the
    length. By default it has 13 convolutions, and like the paper's ResNet-18 its representation
    has one layer a convolution and the pooled features: 14 in all.

    Parameters
    ----------
    width : int
        Channels of the stem.
    classes : int
        Number of classes.
    stages : sequence of int
        Number of blocks of each stage, at least one.
    skips : bool
        False gives the plain network: no shortcuts, so no convolutions on them either.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import ResNet1D
    >>> ResNet1D()(torch.randn(8, 40)).shape
    torch.Size([8, 10])
    >>> ResNet1D(stages=(3, 3, 3), skips=False)(torch.randn(8, 40)).shape
    torch.Size([8, 10])
    """

    def __init__(
        self,
        *,
        width: int = 32,
        classes: int = 10,
        stages: Sequence[int] = (1, 2, 2),
        skips: bool = True,
    ) -> None:
        super().__init__()
        if not stages or min(stages) < 1:
            raise ValueError(f"stages: expected at least one block a stage, got {stages}")
        self.stem = nn.Conv1d(1, width, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm1d(width)
        self.relu = nn.ReLU()
        blocks, channels = [], width
        for i, count in enumerate(stages):
            for j in range(count):
                stride = 2 if i and not j else 1
                blocks.append(_BasicBlock(channels, width * 2**i, stride, skips))
                channels = width * 2**i
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of signals (n, length)."""
        x = self.relu(self.bn(self.stem(x.unsqueeze(1))))
        return self.head(self.pool(self.blocks(x)).flatten(1))
