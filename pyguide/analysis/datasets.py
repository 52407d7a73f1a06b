"""The data that ``pyguide compare`` is asked for, read batch by batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyguide.errors import UserError
from pyguide.torch_files import other_kind, read_torch_file

__all__ = ["BUILT_IN", "Samples", "batches", "open_samples"]

#: The data sets that come with a package.
BUILT_IN = ("mnist5000", "mnist1d")


class Samples(Protocol):
    """Inputs of a network."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The samples (n, ...) of indices (n,)."""


def open_samples(data: str, image_size: int) -> Samples:
    """Open what the option --data names; samples are read when they are asked for.

    Parameters
    ----------
    data : str
        "mnist5000" (all 5000 images, (1, 28, 28), standardised), "mnist1d" (its training and
        test samples, (40,)), a folder of images, a .npy file or a .pt file with one tensor.
        Images may lie at any depth; their short side is resized to 8/7 of `image_size` (224 and
        256), the centre is cut out and normalised by ImageNet's mean and standard deviation.
        Numbers with a point become float32; integers stay as they are.
    image_size : int
        Height and width of the images of a folder.

    Raises
    ------
    UserError
        If there is no such data, or nothing in it.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from pyguide.analysis.datasets import open_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "inputs.pt"
    ...     torch.save(torch.zeros(100, 3, 8, 8, dtype=torch.float64), path)
    ...     samples = open_samples(str(path), image_size=224)
    ...     batch = samples[torch.tensor([5, 0])]
    >>> len(samples), batch.shape, batch.dtype
    (100, torch.Size([2, 3, 8, 8]), torch.float32)
    """
    if data in BUILT_IN:
        return _TensorSamples(_built_in(data))
    path = Path(data)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"--data {data}: {error.strerror}") from error
    if is_folder:
        return _ImageSamples(path, image_size)
    if path.suffix in (".npy", ".pt", ".pth") and is_file:
        tensor = _map_npy(path) if path.suffix == ".npy" else read_torch_file(path)
        found = other_kind(tensor)
        if found is None and tensor.dim() < 2:
            found = str(tuple(tensor.shape))
        if found is not None:
            raise UserError(
                f"--data {data}: expected one dense tensor (samples, ...), found {found}"
            )
        return _TensorSamples(tensor)
    raise UserError(
        f"--data {data}: no such data; expected a folder of images, a .npy or .pt file, "
        f"or one of {', '.join(BUILT_IN)}"
    )


def batches(
    samples: Samples,
    *,
    batch_size: int,
    count: int | None,
    seed: int,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Tensor]:
    """Batches of the samples in an order drawn from the seed, the same in every call.

    Parameters
    ----------
    samples : Samples
    batch_size : int
    count : int, optional
        The number of samples to take; default all.
    seed : int
    workers : int
        Processes that read; 0 reads in this one.
    pin_memory : bool
        Whether the batches go to a GPU.
    """
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    chosen: Any = order[:count].split(batch_size)
    workers = min(workers, len(chosen))  # More would have nothing to do.
    return DataLoader(
        samples,  # type: ignore[arg-type]  # It need not be a Dataset.
        batch_size=None,
        sampler=chosen,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # Others would copy the samples.
        pin_memory=pin_memory,
        generator=torch.Generator(),  # Else it draws from the global one.
    )


class _TensorSamples:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, indices: Tensor) -> Tensor:
        batch = self._tensor[indices]
        return batch.float() if batch.is_floating_point() else batch


class _ImageSamples:
    """The images below a folder, sorted by path."""

    def __init__(self, root: Path, size: int) -> None:
        try:
            import numpy as np

            from pyguide.data.image_transforms import EvalTransform
            from pyguide.data.images import EXTENSIONS, image_paths
        except ImportError as error:
            raise UserError(f"images need {error.name}: pip install 'pyguide[compare]'") from error
        paths = image_paths(root)
        if not paths:
            raise UserError(f"--data {root}: no images ({' '.join(EXTENSIONS)}) in this folder")
        self._root = root
        # One array, not a list, whose reference counts would copy it into every worker.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._transform = EvalTransform(size=size, resize=size * 256 // 224)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, indices: Tensor) -> Tensor:
        from pyguide.data.images import read_image

        paths = (self._root / os.fsdecode(path) for path in self._paths[indices.numpy()])
        return torch.stack([self._transform(read_image(path)) for path in paths])


def _map_npy(path: Path) -> Tensor:
    try:
        import numpy as np
    except ImportError as error:
        raise UserError(f"{path}: this needs numpy: pip install 'pyguide[compare]'") from error
    try:
        # Copy on write: torch wants memory that can be written.
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except Exception as error:
        raise UserError(f"{path}: cannot be read as an array of numbers: {error}") from error


def _built_in(name: str) -> Tensor:
    if name == "mnist1d":
        from pyguide.data.mnist1d import generate

        raw = generate()
        return torch.cat([raw["x_train"], raw["x_test"]])
    from pyguide.data.mnist5000 import mnist5000

    return torch.cat([images for images, _ in mnist5000().values()])
