"""ResNets over images (He et al. 2016), with torchvision's names, and their plain twins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["ResNet", "deep_convnet", "resnet18", "resnet50"]


class ResNet(nn.Sequential):
    """A stem, stages of residual blocks, average pooling and a linear output.

    The state dict has torchvision's keys and shapes, so its weights load; from the same
    seed the initial weights are torchvision's too. A bottleneck has its stride on the 3 x 3
    convolution, as torchvision's ("v1.5") has.

    Parameters
    ----------
    stages : sequence of int
        Number of blocks of each stage. The first stage has ``width`` channels; each later
        one doubles the channels and halves the image.
    bottleneck : bool
        Blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, the last to four times the channels,
        instead of two 3 x 3 convolutions.
    width : int
        Channels of the stem.
    classes, in_channels : int
        Number of classes and of the image's channels.
    stem : {"imagenet", "small"}
        A 7 x 7 convolution and max pooling that quarter the image, or a 3 x 3 convolution
        that keeps its size, for images of some 32 pixels.
    skips : bool
        False gives the plain network: no shortcuts, so no ``downsample`` branches either,
        which exist only on them. The block's last ReLU stays.
    he_init : bool
        Draw convolutions as torchvision does (He et al. 2015, by fan-out); False leaves
        them as torch draws them.

    Raises
    ------
    ValueError
        If ``stages`` is empty or has a stage without blocks, or ``stem`` is unknown.

    Examples
    --------
    A small ResNet for small grey images, and its twin without shortcuts:

    >>> import torch
    >>> from pyguide.experiments.networks import ResNet
    >>> small = dict(stages=[1, 1, 1], width=16, classes=10, in_channels=1, stem="small")
    >>> ResNet(**small)(torch.randn(8, 1, 28, 28)).shape
    torch.Size([8, 10])
    >>> ResNet(**small, skips=False)(torch.randn(8, 1, 28, 28)).shape
    torch.Size([8, 10])
    """

    def __init__(
        self,
        stages: Sequence[int],
        *,
        bottleneck: bool = False,
        width: int = 64,
        classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        skips: bool = True,
        he_init: bool = True,
    ) -> None:
        if not stages or min(stages) < 1:
            raise ValueError(f"stages: expected at least one block a stage, got {stages}")
        layers = _stem(stem, in_channels, width)
        channels = width
        for i, blocks in enumerate(stages):
            stage = []
            for block in range(blocks):
                stride = 2 if i > 0 and block == 0 else 1
                stage.append(_Block(channels, width * 2**i, stride, bottleneck, skips))
                channels = stage[-1].out_channels
            layers[f"layer{i + 1}"] = nn.Sequential(*stage)
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, classes)
        super().__init__(layers)
        if he_init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(**options: Any) -> ResNet:
    """ResNet-18, the guide of the paper's FCNs: 11.7 million parameters.

    Parameters
    ----------
    **options
        Further arguments of :class:`ResNet`.
    """
    return ResNet([2, 2, 2, 2], **options)


def resnet50(**options: Any) -> ResNet:
    """ResNet-50, the guide of the paper's Deep ConvNet: 25.6 million parameters.

    Parameters
    ----------
    **options
        Further arguments of :class:`ResNet`.
    """
    return ResNet([3, 4, 6, 3], bottleneck=True, **options)


def deep_convnet(**options: Any) -> ResNet:
    """The paper's Deep ConvNet: ResNet-50 without shortcuts, 22.8 million parameters.

    Like the paper's published code, it has no ``downsample`` branches and leaves the
    convolutions as torch draws them; ``he_init=True`` draws them as ResNet-50's.

    Parameters
    ----------
    **options
        Further arguments of :class:`ResNet`.
    """
    return resnet50(**{"skips": False, "he_init": False, **options})


class _Block(nn.Module):
    """Convolutions with BatchNorm, ReLU between them, and a shortcut around them."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, bottleneck: bool, skips: bool
    ) -> None:
        super().__init__()
        self.out_channels = 4 * channels if bottleneck else channels
        self.bottleneck, self.skips = bottleneck, skips
        # Drawn before the convolutions and registered after them: torchvision's order.
        downsample: nn.Module | None = None
        if skips and (stride != 1 or in_channels != self.out_channels):
            downsample = nn.Sequential(
                _conv(in_channels, self.out_channels, 1, stride),
                nn.BatchNorm2d(self.out_channels),
            )
        if bottleneck:
            self.conv1 = _conv(in_channels, channels, 1)
        else:
            self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(channels)
        if bottleneck:
            self.conv3 = _conv(channels, self.out_channels, 1)
            self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.relu(out)))
        if self.skips:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu(out)


def _stem(kind: str, in_channels: int, width: int) -> OrderedDict[str, nn.Module]:
    if kind == "imagenet":
        conv, pool = _conv(in_channels, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
    elif kind == "small":
        conv, pool = _conv(in_channels, width, 3), None
    else:
        raise ValueError(f"stem: expected 'imagenet' or 'small', got {kind!r}")
    layers = OrderedDict[str, nn.Module](conv1=conv, bn1=nn.BatchNorm2d(width), relu=nn.ReLU())
    if pool is not None:
        layers["maxpool"] = pool
    return layers


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
