"""Fixtures and measures of error that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulated_backend import emulated_backend
from emulation import Emulator, build
from torch import Tensor

from pyguide import _native
from pyguide.ops import cpu


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=_native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with each instruction set that this CPU has."""
    monkeypatch.setattr(cpu, "instruction_set", request.param)
    return request.param


@pytest.fixture
def emulated(emulated_library) -> Iterator[None]:
    """Sends CPU tensors through pyguide/ops/cuda.py to the emulated CUDA library."""
    with emulated_backend(emulated_library):
        yield


_CUDA = ["emulated", pytest.param("cuda", marks=pytest.mark.cuda)]


def _on(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    if backend == "cuda":
        with torch.device("cuda"):
            yield backend
        return
    if backend == "emulated":
        request.getfixturevalue("emulated")
    yield backend


@pytest.fixture(params=["cpu", *_CUDA])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with every backend; on a GPU that is where it makes its tensors."""
    yield from _on(request.param, request)


@pytest.fixture(params=_CUDA)
def cuda_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with the CUDA kernels, emulated and on a GPU."""
    yield from _on(request.param, request)


@pytest.fixture
def threads():
    """Sets torch's thread count for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def relative_error():
    """||a - b|| / ||b|| in float64."""

    def measure(a: Tensor, b: Tensor) -> float:
        a, b = a.detach().double(), b.detach().double()
        return ((a - b).norm() / b.norm()).item()

    return measure


@pytest.fixture(scope="session")
def related_layers():
    """Layers of the given widths whose features share a signal, so that CKA is neither 0 nor 1."""

    def make(n: int, widths: list[int], dtype: torch.dtype = torch.float64, signals: int = 20):
        shared = torch.randn(n, signals, dtype=torch.float64)
        layers = []
        for d in widths:
            mixing = torch.randn(signals, d, dtype=torch.float64) / signals**0.5
            layers.append((shared @ mixing + torch.randn(n, d, dtype=torch.float64)).to(dtype))
        return layers

    return make


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The CUDA library compiled for the CPU: its device memory is the host's."""
    return build("pyguide_cuda_emulated") / "libpyguide_cuda_emulated.so"


@pytest.fixture(scope="session")
def emulator(emulated_library) -> Emulator:
    """Controls of the emulated CUDA library."""
    return Emulator(emulated_library)
