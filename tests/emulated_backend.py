"""CPU tensors on the CUDA kernels' emulated build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from pyguide import cuda_library
from pyguide.ops import cuda, dispatch

_MEMORY = 1 << 40  # of the device, as far as the budget is concerned


@contextmanager
def emulated_backend(library: Path) -> Iterator[None]:
    """Run every operator on CPU tensors through pyguide.ops.cuda and the emulated library."""
    with (
        mock.patch.object(cuda_library, "path", str(library)),
        mock.patch.dict(dispatch._BACKENDS, cpu=cuda),
        mock.patch.object(cuda, "_target", lambda device: (0, 0)),
        mock.patch.object(cuda, "_memory", lambda device: _MEMORY),
    ):
        cuda_library.capability(0)
        yield
