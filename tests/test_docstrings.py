"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
from pathlib import Path
from types import FunctionType

import pytest

import pyguide
import pyguide.analysis

_PACKAGE = Path(pyguide.__file__).parent
# From the files, because pkgutil passes over folders that do not import.
_MODULES = sorted(
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in _PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
_PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (
        pyguide,
        pyguide.analysis,
        pyguide.distances,
        pyguide.guidance,
        pyguide.guidance.schedules,
    )
    for name in module.__all__
    if isinstance(getattr(module, name), (type, FunctionType))
}


@pytest.mark.parametrize("name", _MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_no_module_is_missed() -> None:
    assert {"pyguide", "pyguide.ops.cka", "pyguide.guidance.guidance"} <= set(_MODULES)


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    documented = _PUBLIC[name]
    assert documented.__doc__
    # What a user gets rather than calls needs no example; nor does an abstract class.
    if not (dataclasses.is_dataclass(documented) and name != "pyguide.Pair"):
        assert ">>>" in documented.__doc__ or documented is pyguide.distances.Distance, name
