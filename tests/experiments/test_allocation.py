"""Large blocks that a process frees are allocated again without new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import sys

import torch

from pyguide.experiments.harness.allocation import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, second = faults(), faults()
print(first, second)
"""


def faults(*argv):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *argv], capture_output=True, text=True, check=True
    )
    return map(int, done.stdout.split())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_blocks_are_kept():
    _, lost = faults()
    _, kept = faults("keep")
    assert kept < 0.1 * lost
