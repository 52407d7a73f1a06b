"""Fully connected targets: deep and narrow, or shallow and wide."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DeepFCN", "WideFCN"]

# A 224 x 224 image in three channels and ImageNet's classes: the paper's input and output.
_IMAGENET_FEATURES = 3 * 224 * 224
_IMAGENET_CLASSES = 1000


class _FCN(nn.Sequential):
    """Hidden blocks of Linear, BatchNorm, ReLU (and Dropout), then a Linear output layer."""

    def __init__(
        self,
        depth: int,
        in_features: int,
        width: int,
        classes: int,
        *,
        first_width: int | None = None,
        dropout: float | None = None,
    ) -> None:
        if depth < 2:
            raise ValueError(f"depth: expected at least 2, got {depth}")
        sizes = [in_features, first_width or width, *[width] * (depth - 2)]
        blocks: list[nn.Module] = [_block(a, b, dropout) for a, b in pairwise(sizes)]
        super().__init__(*blocks, nn.Linear(sizes[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of inputs (n, ...); every axis but the first is flattened."""
        return super().forward(x.flatten(1))


def _block(inputs: int, outputs: int, dropout: float | None) -> nn.Sequential:
    layers = [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([] if dropout is None else [nn.Dropout(dropout)]))


class DeepFCN(_FCN):
    """A fully connected network of ``depth`` linear layers, the output layer included.

    The first ``depth - 1`` layers are Linear, BatchNorm, ReLU, Dropout blocks of ``width``
    units, as in the Deep FCN of arXiv 2410.20035.

    Parameters
    ----------
    depth : int
        Number of Linear layers, output included; at least 2.
    in_features, width, classes : int
        Sizes of the input (its axes flattened), of the hidden layers and of the output.
    first_width : int, optional
        Size of the first hidden layer, if not ``width``.
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
        first_width: int | None = None,
        classes: int = 10,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            depth, in_features, width, classes, first_width=first_width, dropout=dropout
        )

    @classmethod
    def paper(cls) -> DeepFCN:
        """The paper's network: 150528 pixels, 2048 units, 47 x 1024 units, 1000 classes.

        It has 360 million parameters, 308 million of them in the first layer.
        """
        return cls(
            49,
            in_features=_IMAGENET_FEATURES,
            width=1024,
            first_width=2048,
            classes=_IMAGENET_CLASSES,
        )


class WideFCN(_FCN):
    """A fully connected network of few, wide layers: Linear, BatchNorm, ReLU, no dropout.

    The defaults are the Wide FCN of arXiv 2410.20035: three hidden layers of 8192 units
    between 150528 pixels and 1000 classes.

    Parameters
    ----------
    depth : int
        Number of Linear layers, output included; at least 2.
    in_features, width, classes : int
        Sizes of the input (its axes flattened), of every hidden layer and of the output.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.networks import WideFCN
    >>> WideFCN(in_features=3 * 8 * 8, width=64, classes=10)(torch.randn(8, 3, 8, 8)).shape
    torch.Size([8, 10])
    """

    def __init__(
        self,
        depth: int = 4,
        *,
        in_features: int = _IMAGENET_FEATURES,
        width: int = 8192,
        classes: int = _IMAGENET_CLASSES,
    ) -> None:
        super().__init__(depth, in_features, width, classes)
