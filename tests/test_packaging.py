"""Building and installing: the real commands, in copies of this tree, without a network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pyguide
from pyguide._native import cuda

ROOT = Path(__file__).resolve().parent.parent
IN_PLACE = "pip install -c constraints.txt -e '.[test]'"
NATIVE = f"pyguide/_native{sysconfig.get_config_var('EXT_SUFFIX')}"

# As the installation that is tested; for one architecture only, which is quicker.
CUDA = {"PYGUIDE_CUDA": "OFF" if cuda.not_built else "ON", "CUDAARCHS": "80-real"}
PIP = ("-m", "pip", "--disable-pip-version-check")

pytestmark = pytest.mark.xdist_group("packaging")  # so that each fixture builds once


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` with this interpreter's scripts on the PATH and no PYTHONPATH."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYGUIDE_"))}
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, "PATH": path, **env},
        capture_output=True,
        text=True,
    )


def succeed(*command: object, cwd: Path, **env: str) -> str:
    done = run(*command, cwd=cwd, **env)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def weak_symbols(object_file: Path) -> list[str]:
    """Definitions that the linker may replace by, or prefer to, another unit's copy."""
    lines = succeed("nm", object_file, cwd=object_file.parent).splitlines()
    return [line.split()[-1] for line in lines if line.split()[-2] in ("W", "V", "u")]


def environment(folder: Path) -> Path:
    """Create a virtual environment that borrows this one's packages; return its Python.

    A path in a .pth file brings no editable installation with it, so pyguide is not borrowed
    unless it is installed plainly; and then the new environment's own takes precedence.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def copy_of_the_sources(folder: Path) -> Path:
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "pyguide"):
        shutil.copytree(ROOT / name, folder / name, ignore=unbuilt)
    return folder


def test_the_installed_version_is_the_package_version():
    assert importlib.metadata.version("pyguide") == pyguide.__version__


@pytest.mark.parametrize("checkout", [True, False])
def test_a_python_without_torch_is_told_what_to_do(checkout, tmp_path):
    root = ROOT
    if not checkout:
        root = tmp_path
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "pyguide", root / "pyguide", ignore=ignored)
    done = run(sys.executable, "-S", "-c", "import pyguide", cwd=root)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: torch does not load (No module named 'torch')")
    assert (IN_PLACE if checkout else "pip install torch") in last


def test_every_requirement_of_the_extras_is_pinned():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    required = {
        line.partition(";")[0].split(">=")[0].split("[")[0].strip().lower()
        for line in importlib.metadata.requires("pyguide") or []
    } - {"pyguide"}
    assert "torch" in required
    assert required <= pinned


def test_a_missing_compiler_is_named_with_its_package(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(sys.executable, "setup.py", "build_ext", cwd=source, PATH=str(empty), CXX="")
    assert done.returncode != 0
    assert "apt install g++" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ON", "PYGUIDE_CUDA=ON, but /nowhere/nvcc did not compile a program"),
        ("yes", "must be AUTO, ON or OFF, not 'yes'"),
    ],
)
def test_pyguide_cuda_is_checked(value, message, tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    options = {"PYGUIDE_CUDA": value, "CUDACXX": "/nowhere/nvcc"}
    done = run(sys.executable, "setup.py", "build_ext", cwd=source, **options)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def configure(folder: Path, cuda: str, *options: str, **env: str):
    """Run CMake as far as to decide whether the CUDA library is built."""
    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts"))
    options += ("-DPYGUIDE_MODULE=OFF", f"-DPYGUIDE_CUDA={cuda}", f"-DCMAKE_MAKE_PROGRAM={ninja}")
    return run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options, cwd=folder, **env)


def configure_without_nvcc(folder: Path, cuda: str):
    """Hide every nvcc of this machine from CMake."""
    homes = (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda")
    folders = (*os.environ["PATH"].split(os.pathsep), *(f"{home}/bin" for home in homes))
    hidden = ";".join(path for path in folders if Path(path, "nvcc").exists())
    compiler = shutil.which(os.environ.get("CXX", "c++")) or ""
    return configure(folder, cuda, f"-DCMAKE_IGNORE_PATH={hidden}", CXX=compiler)


def test_auto_builds_without_nvcc_and_says_so(tmp_path):
    done = configure_without_nvcc(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    assert "pyguide's CUDA library: no, nvcc was not found when it was built" in done.stdout


def test_on_needs_nvcc_and_says_what_to_do(tmp_path):
    done = configure_without_nvcc(tmp_path, "ON")
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "PYGUIDE_CUDA=ON, but nvcc was not found" in message
    assert "Install the CUDA toolkit, version 12.1 or newer" in message
    assert "or build without it: PYGUIDE_CUDA=OFF" in message


def test_auto_builds_with_an_nvcc_that_fails(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    done = configure(tmp_path, "AUTO", CUDACXX=str(nvcc))
    assert done.returncode == 0, done.stderr
    assert f"pyguide's CUDA library: no, {nvcc} did not compile a program" in done.stdout


@pytest.mark.slow
@pytest.mark.nvcc
def test_auto_finds_nvcc(tmp_path):
    done = configure(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    assert "pyguide's CUDA library: yes, for 80, 90a-real" in done.stdout


def test_off_does_not_look_for_nvcc(tmp_path):
    done = configure(tmp_path, "OFF", CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "pyguide's CUDA library: no, it was built with PYGUIDE_CUDA=OFF" in done.stdout
    assert "Looking for a CUDA compiler" not in done.stdout


def test_weak_symbols_are_found(tmp_path):
    (tmp_path / "unit.cpp").write_text(
        "__attribute__((noinline)) inline int twice(int x) { return 2 * x; }\n"
        "static int thrice(int x) { return 3 * x; }\n"
        "int six(int x) { return twice(thrice(x)); }\n"
    )
    compiler = os.environ.get("CXX", "c++")
    succeed(*compiler.split(), "-O3", "-c", "unit.cpp", "-o", "unit.o", cwd=tmp_path)
    assert weak_symbols(tmp_path / "unit.o") == ["_Z5twicei"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The unpacked source distribution: a checkout with nothing built."""
    folder = tmp_path_factory.mktemp("sdist")
    options = ("--sdist", "--no-isolation", "--outdir", folder)
    succeed(sys.executable, "-m", "build", *options, ROOT, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """A wheel built from the source distribution by a build that cannot import torch."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "torch.py").write_text("raise ImportError('the build must not import torch')\n")
    options = ("--no-build-isolation", "--no-deps", "--wheel-dir", folder)
    succeed(
        *(sys.executable, *PIP, "wheel", *options, sdist),
        **{"cwd": folder, "PYTHONPATH": str(folder), **CUDA},
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder / "venv")
    options = ("--no-deps", "--no-index", "--ignore-installed")
    succeed(
        *(sys.executable, *PIP, "--python", python, "install", *options, wheel),
        cwd=folder,
    )
    return python


def launches(python: Path, root: Path) -> dict[str, tuple[object, ...]]:
    """Every way to start Python so that the checkout's root leads its search path."""
    program = root / "print_where.py"
    program.write_text("import pyguide\nprint(pyguide.__file__)\n")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    return {
        "-c": (python, "-c", program.read_text()),
        "-m": (python, "-m", "pyguide", "info"),
        "torchrun": (python, *torchrun, program.name),
    }


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_no_other_library(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    libraries = sorted(name for name in names if ".so" in name)
    assert libraries == (["pyguide/_cuda.so"] if CUDA["PYGUIDE_CUDA"] == "ON" else []) + [NATIVE]
    assert "pyguide/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pyguide"}


@pytest.mark.slow
def test_the_kernels_have_no_weak_symbols(sdist, wheel):
    objects = list(sdist.glob("build/cmake-*/**/kernels_*.o"))
    x86 = platform.machine() in ("x86_64", "AMD64")
    units = sdist.glob("csrc/cpu/kernels_*.cpp" if x86 else "csrc/cpu/kernels_portable.cpp")
    assert sorted(path.name for path in objects) == sorted(f"{path.name}.o" for path in units)
    assert {path.name: weak_symbols(path) for path in objects if weak_symbols(path)} == {}


@pytest.mark.slow
def test_the_wheel_works_outside_the_tree(installed, tmp_path):
    program = (
        "import torch, pyguide\n"
        "x, y = torch.randn(64, 300), torch.randn(64, 200)\n"
        "torch.testing.assert_close(pyguide.cka(x, y), pyguide.reference.cka(x, y))\n"
        "print(pyguide.__file__)\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line}))\n"
    )
    where, openmp_runtimes = succeed(installed, "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent.parent)
    assert openmp_runtimes == "1"


@pytest.mark.slow
def test_the_command_works_from_the_root_after_a_plain_install(installed, sdist):
    assert "available" in succeed(installed.parent / "pyguide", "info", cwd=sdist)


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["-c", "-m", "torchrun"])
def test_unbuilt_sources_do_not_hide_the_installed_package_silently(launch, installed, sdist):
    done = run(*launches(installed, sdist)[launch], cwd=sdist)
    assert done.returncode != 0
    assert IN_PLACE in done.stderr


@pytest.fixture(scope="module")
def editable(sdist, wheel, tmp_path_factory) -> tuple[Path, Path]:
    """A checkout installed in place without CUDA kernels, and its Python.

    Its build folder is left over from another place, by tools that have vanished since; so is a
    CUDA library.
    """
    folder = tmp_path_factory.mktemp("editable")
    root = folder / "checkout"
    shutil.copytree(sdist, root)
    (cache,) = root.glob("build/cmake-*/CMakeCache.txt")
    tools = r"^((?:CMAKE_MAKE_PROGRAM|CMAKE_COMMAND|pybind11_DIR):\w+=).*$"
    cache.write_text(re.sub(tools, r"\1/vanished", cache.read_text(), flags=re.MULTILINE))
    (root / "pyguide" / "_cuda.so").touch()
    python = environment(folder / "venv")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed")
    succeed(
        *(sys.executable, *PIP, "--python", python, "install", *options, "-e", root),
        **{"cwd": folder, "PYGUIDE_CUDA": "OFF"},
    )
    return root, python


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["-c", "-m", "torchrun"])
def test_an_editable_install_works_from_the_root(launch, editable):
    root, python = editable
    out = succeed(*launches(python, root)[launch], cwd=root)
    assert ("available" if launch == "-m" else str(root / "pyguide")) in out


@pytest.mark.slow
def test_an_editable_install_works_elsewhere(editable, tmp_path):
    root, python = editable
    out = succeed(python, "-c", "import pyguide; print(pyguide.__file__)", cwd=tmp_path)
    assert Path(out.strip()).is_relative_to(root)


@pytest.mark.slow
def test_an_install_without_cuda_leaves_no_cuda_library(editable):
    root, python = editable
    assert not (root / "pyguide" / "_cuda.so").exists()
    info = succeed(python, "-m", "pyguide", "info", cwd=root)
    assert "no CUDA kernels: it was built with PYGUIDE_CUDA=OFF" in info


@pytest.mark.slow
@pytest.mark.nvcc
def test_an_installed_cuda_library_opens(installed, tmp_path):
    program = (
        "from pyguide import cuda_library\n"
        "from pyguide._native import cuda\n"
        "cuda.open(cuda_library.path)\n"
        "print(cuda_library.path, cuda.architectures, cuda.stat_chunks(64) >= 1)\n"
    )
    path, *built = succeed(installed, "-c", program, cwd=tmp_path).split()
    assert Path(path).is_relative_to(installed.parent.parent)
    assert built == ["80-real", "True"]
