"""The short form of fuzz_native.py, and proof that it notices what it looks for."""

from __future__ import annotations

import ctypes

import fuzz_native
import pytest

from pyguide import _native


def test_random_calls() -> None:
    # Each raises on a wrong answer; that they would is what test_a_fault_is_found shows.
    made = {fuzz_native.fuzz_one(0, index) for index in range(2000)}
    assert made == {call.__name__ for call in fuzz_native.CALLS}


@pytest.mark.parametrize("offset", [0, -1], ids=["a wrong result", "a byte before the output"])
@pytest.mark.parametrize("function", ["gram", "alignment", "coefficients", "symmetrize", "apply"])
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, function: str, offset: int) -> None:
    original = getattr(_native, function)
    # Where each function's output is among its arguments.
    place = {"gram": 2, "alignment": 8, "coefficients": 12, "symmetrize": 5, "apply": 4}[function]

    def faulty(*arguments) -> None:
        original(*arguments)
        output = arguments[place]
        address = output[0][0] if isinstance(output, list) else output
        ctypes.memset(address + offset, 0x41, 1 if offset else 4)

    call = getattr(fuzz_native, f"call_{function}")
    monkeypatch.setattr(fuzz_native, "CALLS", {call: 1})
    monkeypatch.setattr(_native, function, faulty)
    with pytest.raises(AssertionError, match=rf"call_{function}.*--seed 0 --start \d+"):
        for index in range(200):
            fuzz_native.fuzz_one(0, index)
