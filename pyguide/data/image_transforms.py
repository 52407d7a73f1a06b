"""ImageNet's usual transforms, on Pillow images and torch tensors.

torchvision has them too, but each of its releases needs one exact release of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["MEAN", "STD", "EvalTransform", "TrainTransform", "normalised"]

#: Mean and standard deviation of ImageNet's channels, red, green, blue, on a scale of 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, random horizontal flip, normalisation.

    Parameters
    ----------
    size : int
        Height and width of the result.
    scale : (float, float)
        Range of the crop's share of the image's area.
    ratio : (float, float)
        Range of the crop's width / height, drawn uniformly in its logarithm.
    flip : float
        Probability of the flip.

    Examples
    --------
    >>> import torch
    >>> from PIL import Image
    >>> from pyguide.data.image_transforms import TrainTransform
    >>> generator = torch.Generator().manual_seed(0)
    >>> TrainTransform()(Image.new("RGB", (500, 375)), generator).shape
    torch.Size([3, 224, 224])
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """A float32 (3, size, size) tensor of an RGB image; draws from the generator."""
        left, top, width, height = self._crop(image.width, image.height, generator)
        # Cropped first: resize(box=...) would blend in pixels from outside the crop.
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand((), generator=generator) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return normalised(image)

    def _crop(
        self, width: int, height: int, generator: torch.Generator
    ) -> tuple[int, int, int, int]:
        """Left, top, width and height of a crop that fits, or of the centre after 10 tries."""
        for _ in range(10):
            area = width * height * _uniform(*self.scale, generator)
            narrow, wide = map(math.log, self.ratio)
            ratio = math.exp(_uniform(narrow, wide, generator))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(height - h + 1, (), generator=generator))
                left = int(torch.randint(width - w + 1, (), generator=generator))
                return left, top, w, h
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class EvalTransform:
    """Resize the short side, crop the centre, normalise; nothing is random.

    Parameters
    ----------
    size : int
        Height and width of the result.
    resize : int
        Length of the short side before the crop; at least ``size``.

    Examples
    --------
    >>> from PIL import Image
    >>> from pyguide.data.image_transforms import EvalTransform
    >>> EvalTransform()(Image.new("RGB", (500, 375))).shape
    torch.Size([3, 224, 224])
    """

    size: int = 224
    resize: int = 256

    def __post_init__(self) -> None:
        if self.resize < self.size:
            raise ValueError(f"resize: expected at least size = {self.size}, got {self.resize}")

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """A float32 (3, size, size) tensor of an RGB image; the generator is not used."""
        short = min(image.size)
        width, height = (side * self.resize // short for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return normalised(image.crop((left, top, left + self.size, top + self.size)))


def normalised(image: Image.Image) -> Tensor:
    """A float32 (3, height, width) tensor, each channel shifted and scaled by ImageNet's.

    Parameters
    ----------
    image : PIL.Image.Image
        An image of mode RGB.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return pixels.div_(255).sub_(mean).div_(std)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(()).uniform_(low, high, generator=generator).item()
