"""Opening the CUDA library: when it happens, and what a user is told where it cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import fake_libraries
import pytest
import torch

import pyguide
from pyguide import cuda_library
from pyguide._native import cuda


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Makes pyguide use a library that is made for the test."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def compile_and_use(**fake: object) -> None:
        library = fake_libraries.cuda_library(tmp_path, **fake)
        monkeypatch.setattr(cuda_library, "path", str(library))

    return compile_and_use


def run(program: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_opened_before_it_is_needed():
    out = run("""
import sys, torch, pyguide
def loaded():
    return any("_cuda.so" in line for line in open("/proc/self/maps"))
x = torch.randn(8, 3, requires_grad=True)
pyguide.cka(x, torch.randn(8, 2)).backward()
print(loaded(), "torch._dynamo" in sys.modules)
pyguide.backends()
print(loaded() == (not pyguide._native.cuda.not_built))
""")
    assert out.split() == ["False", "False", "True"]


def test_devices_are_listed_with_what_the_kernels_were_built_for(use):
    use(capabilities="90, 75, 86")
    backend = pyguide.backends()["cuda"]
    assert backend.available
    assert backend.detail == f"compute capability 9.0, 7.5, 8.6; built for {cuda.architectures}"


def test_old_devices_are_not_enough(use):
    use(capabilities="75, 70")
    backend = pyguide.backends()["cuda"]
    assert not backend.available
    assert "7.5, 7.0: the kernels need 8.0 or a newer GPU" in backend.detail
    # No kernel is loaded there.
    assert cuda_library.why_missing() is None
    assert [cuda_library.capability(i) for i in range(2)] == [75, 70]


def test_errors_of_a_device_are_raised(use):
    use(capabilities="80")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="this GPU is out of memory"):
            cuda_library.capability(0)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        cuda_library.capability(1)


def test_a_torch_without_cuda_is_named(use, monkeypatch):
    use()
    monkeypatch.setattr(torch.version, "cuda", None)
    backend = pyguide.backends()["cuda"]
    assert not backend.available
    assert f"torch {torch.__version__} has no CUDA: install one" in backend.detail
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "ROCm" in pyguide.backends()["cuda"].detail


def test_a_library_of_another_version_is_refused(use):
    use(version=999)
    reason = cuda_library.why_missing()
    assert "has version 999 of the interface, not 1: install pyguide again" in reason
    assert pyguide.backends()["cuda"] == pyguide.Backend(False, reason)
    with pytest.raises(RuntimeError, match="version 999"):
        cuda_library.capability(0)


def test_a_library_that_does_not_load_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "path", str(tmp_path / "vanished.so"))
    assert "vanished.so: cannot open" in cuda_library.why_missing()
    monkeypatch.setattr(cuda_library, "path", pyguide._native.__file__)
    assert "has no pyguide_cuda_api" in cuda_library.why_missing()


def test_a_build_without_kernels_says_how_to_have_them(monkeypatch):
    monkeypatch.setattr(cuda_library, "_opened", None)
    monkeypatch.setattr(cuda, "not_built", "nvcc was not found when it was built")
    reason = pyguide.backends()["cuda"].detail
    assert "no CUDA kernels: nvcc was not found" in reason
    assert "install the CUDA toolkit" in reason and "PYGUIDE_CUDA=ON" in reason


def test_nothing_runs_before_a_library_is_opened():
    out = run("""
from pyguide._native import cuda
for call in (cuda.device_count, lambda: cuda.open_device(0), lambda: cuda.stat_chunks(8)):
    try:
        call()
    except RuntimeError as error:
        print(error)
""")
    assert out.splitlines() == ["no CUDA library was opened"] * 3


FRESH_PROCESS = """
import torch
from pyguide import cuda_library, reference
from pyguide.ops import cuda, dispatch

def target(device):
    cuda_library.capability(0)
    return 0, 0

cuda_library.path = {path!r}
cuda._target, cuda._memory, dispatch._BACKENDS["cpu"] = target, lambda device: 1 << 40, cuda
layers = [torch.randn(8, 3), torch.randn(8, 2)]
"""


@pytest.mark.parametrize(
    ("call", "exact"),
    [
        (
            "torch.ops.pyguide.cka_sample_space(layers, [0], [1], False, False, 0)[0]",
            "reference.cka_pairs(layers[:1], layers[1:])",
        ),
        ("torch.ops.pyguide.gram(layers, True, 0)", "reference.gram(layers)"),
    ],
)
def test_an_operator_opens_the_library_itself(emulated_library, call, exact):
    """Operators of a program that was exported elsewhere come first in a process."""
    program = FRESH_PROCESS.format(path=str(emulated_library))
    program += f"print(torch.allclose({call}.float(), {exact}, rtol=1e-4, atol=1e-4))"
    assert run(program).split() == ["True"]


@pytest.mark.nvcc
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (None, "there is no NVIDIA driver; for a GPU, install driver 580 or newer"),
        ((12040, 100), "supports CUDA 12.4 at most; install driver 580 or newer, for CUDA 13"),
        ((13000, 100), "finds no GPU; see what nvidia-smi lists"),
        ((13000, 999), "does not start (unknown error); see what nvidia-smi says"),
    ],
    ids=["no driver", "old driver", "no device", "broken driver"],
)
def test_the_installed_library_says_what_the_machine_lacks(driver, message, tmp_path):
    if driver is None:
        (tmp_path / "libcuda.so.1").touch()  # hides a driver that is there
    else:
        version, result = driver
        fake_libraries.driver(tmp_path, version, result)
    program = "from pyguide import cuda_library; print(cuda_library.why_missing())"
    assert message in run(program, LD_LIBRARY_PATH=str(tmp_path))
