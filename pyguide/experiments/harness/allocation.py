"""Memory that a job frees and allocates in every step."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt, from glibc's malloc.h, and a size that no tensor of a step has.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, to allocate them again.

    glibc gives blocks above 32 MiB back to the system, and a step that allocates them again
    waits for pages of zeros: with the logits of a language model (256 x 32 x 5,000 float32, 164
    MB) a third of its time.

    Returns
    -------
    bool
        Whether it took effect: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE) and mallopt(_TRIM_THRESHOLD, _NEVER))
