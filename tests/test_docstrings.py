"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pyguide

_MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pyguide.__path__, "pyguide.")
    if module.name not in ("pyguide.__main__", "pyguide._native")
)


@pytest.mark.parametrize("name", _MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


@pytest.mark.parametrize("name", [n for n in pyguide.__all__ if callable(getattr(pyguide, n))])
def test_public_names_are_documented(name: str) -> None:
    assert getattr(pyguide, name).__doc__
    if name not in ("Backend", "LayerInfo"):
        assert ">>>" in getattr(pyguide, name).__doc__, f"{name} has no example"
