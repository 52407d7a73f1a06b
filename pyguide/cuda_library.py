"""The library of CUDA kernels: opened when a CUDA tensor first needs it, or somebody asks."""

from __future__ import annotations

import functools
from pathlib import Path

from pyguide._native import cuda

__all__ = ["MIN_CAPABILITY", "capability", "why_missing"]

# Compute capability 8.0, written as 10 * major + minor.
MIN_CAPABILITY = cuda.min_capability

_INSTALLED = str(Path(__file__).with_name("_cuda.so"))

# The library to use. Tests set it to the emulated build.
path = _INSTALLED

# The path that was opened last, and why it cannot be used.
_opened: tuple[str, str | None] | None = None


def why_missing() -> str | None:
    """Why no CUDA kernel can run here, in a sentence that says what to do; None if one can.

    Whether a device is new enough is another question: see :func:`capability`.
    """
    global _opened
    if _opened is None or _opened[0] != path:
        _opened = path, _open(path)
    return _opened[1]


def _open(path: str) -> str | None:
    if path == _INSTALLED and cuda.not_built:
        return (
            f"pyguide has no CUDA kernels: {cuda.not_built}; to have them, install the CUDA toolkit"
            " and then pyguide from its sources with PYGUIDE_CUDA=ON"
        )
    try:
        cuda.open(path)
        cuda.device_count()
    except RuntimeError as error:
        return str(error)
    return None


def capability(index: int) -> int:
    """Compute capability of a CUDA device, as 10 * major + minor; loads the kernels there.

    Raises
    ------
    RuntimeError
        If :func:`why_missing` has a reason, or the device cannot be used.
    """
    reason = why_missing()
    if reason is not None:
        raise RuntimeError(reason)
    return _open_device(path, index)


@functools.cache
def _open_device(path: str, index: int) -> int:
    return cuda.open_device(index)
