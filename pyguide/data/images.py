"""Image folders, read through Pillow: one folder a class, random draws that can be repeated."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pyguide.errors import UserError

__all__ = ["EXTENSIONS", "EpochSampler", "ImageFolder", "image_paths", "read_image"]

#: Names of images end so, in upper or lower case; other files are left out.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp")

Transform = Callable[[Image.Image, torch.Generator], Tensor]


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder a class, as ImageNet is unpacked.

    The classes are the sorted names of the folders; the images of a class lie anywhere
    below its folder, sorted by path. Folders whose name starts with a dot are left out.

    What a transform draws depends on the seed, the epoch and the index alone, not on the
    workers of a ``DataLoader`` or on what was read before. So a resumed run sees the same
    images. The epoch comes with the index: let an :class:`EpochSampler` give both.

    Parameters
    ----------
    root : path
        The folder of the classes' folders.
    transform : callable
        ``transform(image, generator) -> Tensor``, given an RGB Pillow image and a torch
        generator of its own; see :mod:`pyguide.data.image_transforms`.
    seed : int
        Seed of the transform's draws.
    classes : sequence of str, optional
        The classes that the folder must have: those of the training set for a validation
        set, whose labels would otherwise mean other classes where one is missing.

    Raises
    ------
    UserError
        If the folder is missing, has no classes, other classes than expected, or a class
        without images; and on access, if a file is not an image.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from pyguide.data.image_transforms import EvalTransform
    >>> from pyguide.data.images import ImageFolder
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("cat", "dog"):
    ...         (Path(root) / name).mkdir()
    ...         Image.new("L", (300, 200)).save(Path(root) / name / "1.png")
    ...     images = ImageFolder(root, EvalTransform())
    ...     x, y = images[1]
    >>> images.classes, x.shape, y
    (('cat', 'dog'), torch.Size([3, 224, 224]), 1)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform,
        *,
        seed: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.transform = transform
        self.seed = seed
        self.classes = _classes(self.root)
        if classes is not None and tuple(classes) != self.classes:
            differing = sorted({*classes} ^ {*self.classes})
            raise UserError(
                f"{self.root}: its class folders are not the expected classes in sorted order; "
                f"they differ in {', '.join(differing[:5]) or 'their order'}"
            )
        paths = [_class_paths(self.root, name) for name in self.classes]
        # One array, not a list: reading a list's items counts references, and so copies
        # its memory into every worker.
        self._paths = np.array([os.fsencode(path) for class_ in paths for path in class_])
        self._labels = np.repeat(np.arange(len(paths)), [len(class_) for class_ in paths])

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def labels(self) -> np.ndarray:
        """(n,) labels of the images, indices into ``classes``."""
        return self._labels

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self._paths[index])

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """The image and its label, an index into ``classes``, by (epoch, index).

        An index alone means epoch 0.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]
        generator = _generator(self.seed, epoch, index)
        return self.transform(read_image(self.path(index)), generator), int(self._labels[index])


class EpochSampler(Sampler[tuple[int, int]]):
    """Every index of one epoch, with the epoch, in an order drawn from the seed and the epoch.

    Call :meth:`set_epoch` before each epoch. The epoch travels with every index, so workers
    that live on (``persistent_workers=True``) know it.

    Parameters
    ----------
    size : int
        Number of samples.
    seed : int
        Seed of the order.

    Examples
    --------
    >>> from pyguide.data.images import EpochSampler
    >>> sampler = EpochSampler(3, seed=0)
    >>> sampler.set_epoch(7)
    >>> sorted(sampler)
    [(7, 0), (7, 1), (7, 2)]
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration give this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.size, generator=_generator(self.seed, self.epoch))
        epoch = self.epoch
        return ((epoch, index) for index in order.tolist())


def _generator(*key: int) -> torch.Generator:
    """A generator that depends on all the numbers; hashed, so that near keys are unrelated."""
    text = " ".join(str(int(number)) for number in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _classes(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with a folder of images a class")
    folders = (path.name for path in root.iterdir() if path.is_dir())
    classes = tuple(sorted(name for name in folders if not name.startswith(".")))
    if not classes:
        raise UserError(f"{root}: no folders in it; expected a folder of images a class")
    return classes


def image_paths(folder: Path) -> list[str]:
    """Sorted paths of the images anywhere below a folder, relative to it.

    Names that start with a dot are left out: macOS and image viewers put such files and
    folders beside the images.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(parent, folder)
        images = (
            file for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        )
        found += [os.path.normpath(os.path.join(relative, file)) for file in images]
    return sorted(found)


def _class_paths(root: Path, name: str) -> list[str]:
    """Paths of a class's images, relative to the root."""
    found = image_paths(root / name)
    if not found:
        raise UserError(f"{root / name}: no images ({' '.join(EXTENSIONS)}) in this class folder")
    return [os.path.join(name, path) for path in found]


def read_image(path: Path) -> Image.Image:
    """The image in RGB; transparency is dropped, as torchvision does."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                # 16 bits a pixel: Pillow would clip at 255, not scale.
                eight_bits = (np.asarray(image) >> 8).astype(np.uint8)
                return Image.fromarray(eight_bits).convert("RGB")
            if "transparency" in image.info:
                # Pillow warns about a palette's transparency unless it goes through RGBA.
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except Exception as error:
        # Pillow raises OSError, SyntaxError, ValueError and others for damaged files.
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or remove it"
        ) from error
