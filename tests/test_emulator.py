"""The emulator of tests/emulator: its own test program, plain and under AddressSanitizer."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from emulation import build

PROGRAM = "pyguide_emulator_tests"

SANITIZED = (
    "-DPYGUIDE_SANITIZE=address,undefined",
    "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1",
)

# One worker of pytest-xdist runs these, so that none waits for another's build.
ONE_BUILD = pytest.mark.xdist_group("emulator under AddressSanitizer")


def run(program: object, *tests: str) -> subprocess.CompletedProcess[str]:
    # No options from outside: they could switch a check off.
    env = {name: value for name, value in os.environ.items() if not name.endswith("SAN_OPTIONS")}
    return subprocess.run([str(program), *tests], env=env, capture_output=True, text=True)


def check_that_all_pass(program: object, *tests: str) -> None:
    done = run(program, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("tests, 0 failed")


@pytest.fixture(scope="module")
def sanitized():
    return build(PROGRAM, *SANITIZED, folder="emulated-sanitized") / PROGRAM


@pytest.fixture(scope="module")
def plain():
    return build(PROGRAM) / PROGRAM


@pytest.mark.slow
def test_the_emulator_is_right(plain):
    check_that_all_pass(plain)


@pytest.mark.slow
def test_the_fibers_of_other_processors_are_right():
    options = ("-DCMAKE_CXX_FLAGS=-DPYGUIDE_UCONTEXT", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    program = build(PROGRAM, *options, folder="emulated-ucontext") / PROGRAM
    check_that_all_pass(program, "barriers", "copies", "order", "partial", "pipeline", "sum")


@pytest.mark.slow
@ONE_BUILD
def test_it_is_right_under_address_sanitizer(sanitized):
    check_that_all_pass(sanitized)


@pytest.mark.slow
@ONE_BUILD
@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("planted_shared_overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("planted_stack_overflow", "AddressSanitizer: stack-overflow"),
    ],
)
def test_a_planted_fault_is_found(sanitized, name, report):
    done = run(sanitized, name)
    assert done.returncode != 0
    assert report in done.stderr


@pytest.mark.slow
def test_a_stack_that_overflows_stops_the_program(plain):
    assert run(plain, "planted_stack_overflow").returncode == -signal.SIGSEGV
