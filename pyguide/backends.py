"""Which implementations of the distance operators this installation can run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyguide import _native, cuda_library

__all__ = ["Backend", "backends"]


_GET_TORCH = "install one that has, as https://pytorch.org/get-started says"


@dataclass(frozen=True)
class Backend:
    """One implementation of the distance operators.

    Attributes
    ----------
    available : bool
        Whether it runs here.
    detail : str
        What it uses, or why it is missing and what to do about it.
    """

    available: bool
    detail: str


def backends() -> dict[str, Backend]:
    """Every backend of pyguide by name, the native ones first.

    Returns
    -------
    dict of str to Backend
        ``"cpu"`` and ``"cuda"`` are native; ``"reference"`` is plain torch
        (:mod:`pyguide.reference`) and runs on every device.

    Examples
    --------
    >>> import pyguide
    >>> pyguide.backends()["cpu"].available
    True
    >>> list(pyguide.backends())
    ['cpu', 'cuda', 'reference']
    """
    chosen, *others = _native.instruction_sets()
    also = f" (also: {', '.join(others)})" if others else ""
    return {
        "cpu": Backend(True, f"instruction set {chosen}{also}, built with {_native.compiler()}"),
        "cuda": _cuda(),
        "reference": Backend(True, "plain torch, every device"),
    }


def _cuda() -> Backend:
    if torch.version.hip:
        return Backend(False, "this torch is for ROCm, and the kernels are for NVIDIA GPUs")
    reason = cuda_library.why_missing()
    if reason is not None:
        return Backend(False, reason)
    count = _native.cuda.device_count()
    found = [_native.cuda.device_capability(i) for i in range(count)]
    devices = "compute capability " + ", ".join(f"{c / 10:.1f}" for c in found)
    oldest = cuda_library.MIN_CAPABILITY
    if max(found) < oldest:
        return Backend(False, f"{devices}: the kernels need {oldest / 10:.1f} or a newer GPU")
    if torch.version.cuda is None:
        return Backend(False, f"torch {torch.__version__} has no CUDA: {_GET_TORCH}")
    return Backend(True, f"{devices}; built for {_native.cuda.architectures}")
