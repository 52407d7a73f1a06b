"""Which implementations of the distance operators this installation can run."""

from __future__ import annotations

from dataclasses import dataclass

from pyguide import _native

__all__ = ["Backend", "backends"]


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
        "cuda": Backend(
            False,
            "this version of pyguide has no CUDA backend; CUDA tensors use pyguide.reference",
        ),
        "reference": Backend(True, "plain torch, every device"),
    }
