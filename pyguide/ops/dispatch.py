"""Which backend computes on a device."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

from pyguide import cuda_library
from pyguide.ops import cpu, cuda
from pyguide.ops.tracing import constant_while_traced

__all__ = ["backend_of", "has_native_backend"]

# By device type; both have the same functions.
_BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda}


def backend_of(device: torch.device) -> ModuleType:
    """The module of native calls for tensors there."""
    return _BACKENDS[device.type]


def has_native_backend(device: torch.device) -> bool:
    """Whether native kernels run there; warns once a device type if not."""
    if device.type == "cpu":
        return True
    why = _why_missing(device)
    if why is not None and not torch.compiler.is_compiling():
        _warn_no_backend(device.type, why)
    return why is None


@constant_while_traced
def _why_missing(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return "only CPUs and NVIDIA GPUs have one"
    missing = cuda_library.why_missing()
    if missing is not None:
        return missing
    capability = cuda_library.capability(device.index)
    if capability < cuda_library.MIN_CAPABILITY:
        return (
            f"it needs compute capability {cuda_library.MIN_CAPABILITY / 10:.1f}, "
            f"this GPU has {capability / 10:.1f}"
        )
    return None


@functools.cache
def _warn_no_backend(device_type: str, why: str) -> None:
    warnings.warn(
        f"pyguide has no native backend for these {device_type!r} tensors ({why}); "
        "using the slower pyguide.reference (see pyguide.backends())",
        stacklevel=4,
    )
