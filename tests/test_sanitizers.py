"""The native core's own test binary, plain and under each sanitizer, built from scratch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])

pytestmark = pytest.mark.slow

NO_SANITIZER = """This compiler does not link with -fsanitize={names}. Install its libraries:
    Debian, Ubuntu   apt install g++   (clang: apt install libclang-rt-dev)
    Fedora, RHEL     dnf install libasan libubsan libtsan"""

SANITIZERS = {"plain": "", "address": "address,undefined", "thread": "thread"}

# ThreadSanitizer slows every access down: it runs the tests in which threads share the work.
TESTS = {"thread": ["callers", "parallel", "threads", "uninitialised_workspace", "wide_layer"]}

# What each build must find, in a test that commits it on purpose, and the words it reports it in.
PLANTED = [
    ("plain", "planted_failure", "1 + 1 == 3 is false: this test fails"),
    ("address", "planted_overrun", "AddressSanitizer: heap-buffer-overflow"),
    ("address", "planted_undefined_behaviour", "runtime error: load of misaligned address"),
    ("address", "planted_leak", "LeakSanitizer: detected memory leaks"),
    ("thread", "planted_race", "ThreadSanitizer: data race"),
]


def case(variant: str, *values: object, name: str):
    """Arguments of a test of one variant; a worker of pytest-xdist runs all, and builds it once."""
    return pytest.param(variant, *values, id=name, marks=pytest.mark.xdist_group(variant))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    # No options from outside: they could switch a check off.
    options = ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LSAN_OPTIONS")
    env = {name: value for name, value in os.environ.items() if name not in options}
    return subprocess.run(
        [str(word) for word in command],
        env={**env, "PATH": _PATH},
        capture_output=True,
        text=True,
        errors="replace",
    )


def succeed(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_that_it_links(sanitizers: str, folder: Path) -> None:
    (folder / "empty.cpp").write_text("int main() {}\n")
    compiler = os.environ.get("CXX", "c++").split()
    flags = (f"-fsanitize={sanitizers}", "-o", folder / "empty", folder / "empty.cpp")
    done = run(*compiler, *flags)
    assert done.returncode == 0, f"{NO_SANITIZER.format(names=sanitizers)}\n{done.stderr}"


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> dict[str, Path]:
    """The test binaries that were built so far, by variant."""
    return {}


@pytest.fixture
def binary(request, binaries, tmp_path_factory) -> Path:
    """The test binary of one variant; configured without Python's headers and pybind11."""
    variant = request.param
    if variant not in binaries:
        folder = tmp_path_factory.mktemp(variant)
        sanitizers = SANITIZERS[variant]
        if sanitizers:
            check_that_it_links(sanitizers, folder)
        ninja = shutil.which("ninja", path=_PATH)
        assert ninja, "ninja is missing: pip install -e '.[test]'"
        succeed(
            *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            *("-DPYGUIDE_MODULE=OFF", "-DPYGUIDE_CUDA=OFF", "-DPYGUIDE_TESTS=ON"),
            f"-DPYGUIDE_SANITIZE={sanitizers}",
            # ThreadSanitizer does not see how libgomp synchronises: it would report each loop.
            f"-DPYGUIDE_THREADS={'std' if variant == 'thread' else 'openmp'}",
            *("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1"),
        )
        succeed("cmake", "--build", folder)
        binaries[variant] = folder / "pyguide_tests"
    return binaries[variant]


@pytest.mark.parametrize(
    ("binary", "names"),
    [case(variant, TESTS.get(variant, []), name=variant) for variant in SANITIZERS],
    indirect=["binary"],
)
def test_the_native_tests_pass(binary, names):
    out = succeed(binary, *names)
    assert out.splitlines()[-1].endswith("tests, 0 failed")


@pytest.mark.parametrize(
    ("binary", "name", "report"),
    [case(variant, name, report, name=name) for variant, name, report in PLANTED],
    indirect=["binary"],
)
def test_a_planted_fault_is_found(binary, name, report):
    done = run(binary, name)
    assert done.returncode != 0
    assert report in done.stdout + done.stderr


def test_an_unknown_kind_of_threads_is_refused(tmp_path):
    done = run("cmake", "-S", ROOT, "-B", tmp_path, "-DPYGUIDE_THREADS=tbb")
    assert done.returncode != 0
    assert "must be openmp or std, not 'tbb'" in " ".join(done.stderr.split())
