"""What nvcc made of the CUDA kernels: the installed library, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compiled_kernels import (
    REGISTERS,
    exported_symbols,
    instructions,
    launch_bounds,
    resources,
)

import pyguide
from pyguide._native import cuda

ROOT = Path(__file__).resolve().parent.parent
PLANTED = Path(__file__).with_name("planted_kernels.cu")
ARCHITECTURES = {"sm_80", "sm_90a"}

pytestmark = pytest.mark.nvcc

# The instructions that make a kernel what it is, by a pattern of its mangled name. ldmatrix moves
# 16 or 32 bits that a tensor core takes as they are; other operands are converted first.
BFLOAT16, FLOAT16 = r"HMMA\.16816\.F32\.BF16", r"HMMA\.16816\.F32"
TF32, FLOAT64 = r"HMMA\.1688\.F32\.TF32", r"DMMA\..*"
ASYNC_COPY, MATRIX_LOAD = r"LDGSTS\.E\.BYPASS\.128.*", r"LDSM\..*"
NEEDED = {
    r"GramPartial|Apply": {ASYNC_COPY},
    r"GramPartial.*(Tf32|Float16)|Apply(Tf32|Packed)": {MATRIX_LOAD},
    r"(BFloat16|Rounded)": {BFLOAT16},
    r"PackFloat16": {FLOAT16},
    r"Tf32": {TF32},
    r"Float64": {FLOAT64},
}
LOCAL_MEMORY = r"(LDL|STL)(\..*)?"


@pytest.fixture(scope="module")
def library() -> Path:
    if cuda.not_built:
        pytest.skip(f"no CUDA library: {cuda.not_built}")
    return Path(pyguide.__file__).with_name("_cuda.so")


def faults(library: Path) -> list[str]:
    """Registers that spill, stack frames, and more registers than the source's claim allows."""
    bounds = launch_bounds(library)
    found = []
    for (arch, kernel), used in resources(library).items():
        if used.stack or used.local:
            found.append(
                f"{arch} {kernel}: {used.stack} B of stack, {used.local} B of local memory"
            )
        if (taken := bounds[kernel].registers(used.registers)) > REGISTERS:
            found.append(f"{arch} {kernel}: {bounds[kernel]} take {taken} registers")
    return found


def wrong_instructions(library: Path) -> list[str]:
    """Kernels that lack an instruction they need, or use local memory."""
    found = []
    for (arch, kernel), have in instructions(library).items():
        needed = set().union(*(need for name, need in NEEDED.items() if re.search(name, kernel)))
        for pattern in needed:
            if not any(re.fullmatch(pattern, instruction) for instruction in have):
                found.append(f"{arch} {kernel} lacks {pattern}")
        for instruction in have:
            if re.fullmatch(LOCAL_MEMORY, instruction):
                found.append(f"{arch} {kernel} has {instruction}")
    return found


def test_the_library_exports_one_symbol(library):
    assert exported_symbols(library) == ["pyguide_cuda_api"]


def test_the_library_needs_no_driver_torch_or_python(library):
    dynamic = subprocess.run(
        ["readelf", "-d", str(library)], check=True, capture_output=True, text=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert needed
    assert [name for name in needed if re.match(r"libcuda|libtorch|libc10|libpython", name)] == []


def test_every_kernel_is_compiled_for_every_architecture(library):
    kernels = set(launch_bounds(library))
    assert len(kernels) > 20
    assert set(resources(library)) == {(a, k) for a in ARCHITECTURES for k in kernels}


def test_registers_fit_and_nothing_spills(library):
    assert faults(library) == []


@pytest.mark.slow
def test_kernels_use_tensor_cores_and_asynchronous_copies(library):
    kernels = set(launch_bounds(library))
    unused = [name for name in NEEDED if not any(re.search(name, kernel) for kernel in kernels)]
    assert unused == []
    assert wrong_instructions(library) == []


def find_nvcc() -> str:
    named = os.environ.get("CUDACXX") or shutil.which("nvcc")
    return named or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"))


def compile_planted(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    library = folder / "planted.so"
    command = [find_nvcc(), "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC"]
    command += ["-gencode", "arch=compute_80,code=[sm_80,compute_80]", "-I", str(ROOT / "csrc")]
    command += [*options, "-o", str(library), str(PLANTED)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    done = compile_planted(folder)
    assert done.returncode == 0, done.stderr
    return folder / "planted.so"


@pytest.mark.slow
def test_the_gates_find_planted_faults(planted):
    kernels = "Clean|Spills|LocalArray|Crowded|GramPartialTf32|Large"

    def blamed(found: list[str]) -> list[str]:
        return sorted(re.search(kernels, fault)[0] for fault in found)

    assert blamed(faults(planted)) == ["Crowded", "LocalArray", "Spills"]
    wrong = wrong_instructions(planted)
    local = [fault for fault in wrong if re.search("has (LDL|STL)", fault)]
    assert set(blamed(local)) == {"LocalArray", "Spills"}
    lacking = {fault.split()[-1] for fault in wrong if "GramPartialTf32" in fault}
    assert lacking == {ASYNC_COPY, MATRIX_LOAD, TF32}
    assert exported_symbols(planted) == ["_ZN7pyguide4cuda7plantedEPv"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("PLANT_LARGE_PARAMETERS", "kernel parameters take 32,764 bytes"),
        ("PLANT_LARGE_BLOCK", "99 KB is what every sm_80+ block gets"),
        ("PLANT_LARGE_BLOCKS", "kBlocksPerSm blocks does not fit a multiprocessor"),
    ],
)
def test_kernels_that_ask_for_too_much_do_not_compile(fault, message, tmp_path):
    done = compile_planted(tmp_path, f"-D{fault}")
    assert done.returncode != 0
    assert message in done.stderr
