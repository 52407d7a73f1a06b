"""Builds ``pyguide._native``, and where nvcc is found the library of CUDA kernels, with CMake and
Ninja; everything else is in pyproject.toml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent

NO_COMPILER = """pyguide compiles a native module and found no C++17 compiler.
Install one and try again:
    Debian, Ubuntu   apt install g++
    Fedora, RHEL     dnf install gcc-c++
or set the environment variable CXX to the compiler's path."""

NO_HEADERS = """pyguide compiles a native module and found no Python.h in {include}.
Install Python's development headers and try again:
    Debian, Ubuntu   apt install python3-dev
    Fedora, RHEL     dnf install python3-devel"""

NO_TOOL = """pyguide's build needs {name}, and it is not installed in this environment:
    pip install cmake ninja pybind11 setuptools
or leave out --no-build-isolation, and pip installs it for the build."""

CUDA_LIBRARY = "_cuda.so"

# What decides whether and how CUDA kernels are built; CUDAARCHS is CMake's own.
CUDA_VARIABLES = ("PYGUIDE_CUDA", "CUDACXX", "CUDAHOSTCXX", "CUDA_HOME", "CUDAARCHS")


def find_tool(name: str) -> str:
    # pip does not activate the environment that it installs into: look in its scripts too.
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise SetupError(NO_TOOL.format(name=name))
    return tool


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        raise SetupError(NO_TOOL.format(name="pybind11")) from None
    return pybind11.get_cmake_dir()


def check_compiler() -> None:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise SetupError(NO_COMPILER)
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise SetupError(NO_HEADERS.format(include=include))


def open_build_folder(folder: Path, tools: dict[str, str | None]) -> None:
    """Empty ``folder`` unless these very tools configured it.

    CMake keeps the paths of Ninja, pybind11 and itself in its cache; under build isolation
    they lie in an environment that pip deletes afterwards.
    """
    record = folder / "tools.json"
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = None
    if known != tools:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(json.dumps(tools, indent=2))


def copy_or_remove(built: Path, target: Path) -> None:
    """Copy what this build made, or remove what an earlier one did."""
    if built.exists():
        shutil.copy2(built, target)
    else:
        target.unlink(missing_ok=True)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_compiler()
        tools = {
            "source": str(ROOT),
            "python": sys.executable,
            "cmake": find_tool("cmake"),
            "ninja": find_tool("ninja"),
            "pybind11": find_pybind11(),
            "nvcc": shutil.which("nvcc"),
            **{name: os.environ.get(name) for name in ("CXX", "CXXFLAGS", "LDFLAGS")},
            **{name: os.environ.get(name) for name in CUDA_VARIABLES},
        }
        abi = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        folder = ROOT / "build" / f"cmake-{abi}"
        open_build_folder(folder, tools)
        self.cmake(
            tools["cmake"],
            *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={tools['pybind11']}",
            f"-DPYGUIDE_CUDA={os.environ.get('PYGUIDE_CUDA', 'AUTO')}",
        )
        self.cmake(tools["cmake"], "--build", str(folder))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / target.name, target)
        copy_or_remove(folder / CUDA_LIBRARY, target.with_name(CUDA_LIBRARY))

    def copy_extensions_to_source(self) -> None:
        """Of an installation in place, which setuptools builds elsewhere first."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "pyguide" / CUDA_LIBRARY
        copy_or_remove(built, ROOT / "pyguide" / CUDA_LIBRARY)

    def cmake(self, *command: str) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            raise SetupError("CMake failed: the reason is in the lines above.") from None


setup(ext_modules=[Extension("pyguide._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
