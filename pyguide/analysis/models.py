"""The networks that ``pyguide compare`` is asked for: made by a factory, with weights of a file."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from pyguide.errors import UserError, described, first_line
from pyguide.torch_files import other_kind, read_torch_file

__all__ = ["load_weights", "make_model"]

# What training scripts call the state_dict in a checkpoint, and DDP and compile put before names.
_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def make_model(spec: str, seed: int) -> nn.Module:
    """Call the factory that a spec names.

    Parameters
    ----------
    spec : str
        ``"module:factory"`` or ``"path/to/file.py:factory"``, and keyword arguments as in
        ``"module:factory?depth=20&stem='small'"``: Python literals, anything else is a string.
        Modules are also looked for in the working directory, and what a file imports in its
        folder.
    seed : int
        Seed of torch's generators; their state is put back.

    Raises
    ------
    UserError
        If there is no such module or factory, or it raises, or makes no nn.Module.

    Examples
    --------
    >>> from pyguide.analysis.models import make_model
    >>> make_model("torch.nn:Linear?in_features=3&out_features=2", seed=0)
    Linear(in_features=3, out_features=2, bias=True)
    """
    where, _, query = spec.partition("?")
    module_name, _, name = where.rpartition(":")
    if not module_name or not name:
        raise UserError(f"{spec}: expected module:factory or file.py:factory")
    with _importable(module_name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factory: Any = _import(spec, module_name)
        for part in name.split("."):
            if not hasattr(factory, part):
                raise UserError(f"{spec}: {module_name} has no {name}")
            factory = getattr(factory, part)
        try:
            model = factory(**_arguments(spec, query))
        except (Exception, SystemExit) as error:
            raise UserError(f"{spec}: {name} raised {described(error)}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise UserError(f"{spec}: expected {name} to return a torch.nn.Module, it gave {kind}")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file's state_dict into a network; every name and shape must fit.

    Parameters
    ----------
    model : nn.Module
    path : Path
        A file of ``torch.save`` with a state_dict, or with a checkpoint that has one under
        "state_dict", "model_state_dict" or "model"; or a .safetensors file. The prefixes of
        DDP and torch.compile ("module.", "_orig_mod.") are left out.

    Raises
    ------
    UserError
        If the file cannot be read, or does not fit; the message names what differs.
    """
    state = _state_dict(path)
    own = model.state_dict()
    tensors = {name for name, value in own.items() if isinstance(value, Tensor)}
    differences = [
        _listed("it lacks", [name for name in own if name not in state]),
        _listed("the network lacks", [name for name in state if name not in own]),
        _listed(
            "no dense tensors",
            [
                f"{name} ({kind})"
                for name in state
                if name in tensors and (kind := other_kind(state[name])) is not None
            ],
        ),
        _listed(
            "other shapes",
            [
                f"{name} {tuple(state[name].shape)}, not {tuple(value.shape)}"
                for name, value in own.items()
                if name in tensors
                and other_kind(state.get(name)) is None
                and value.shape != state[name].shape
            ],
        ),
    ]
    if any(differences):
        raise UserError(f"{path} does not fit the network: {'; '.join(filter(None, differences))}")
    try:
        model.load_state_dict(state)
    except (Exception, SystemExit) as error:
        # The network's own code, such as its set_extra_state, may run here.
        raise UserError(f"{path}: loading it raised {described(error)}") from error


def _state_dict(path: Path) -> dict[str, Any]:
    if os.path.isdir(path):  # False, not an error, for a path that cannot be looked at.
        raise UserError(f"{path}: a folder, not a file")
    read = _read_safetensors if path.suffix == ".safetensors" else read_torch_file
    found: Any = read(path)
    for key in _KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path}: no state_dict in it, nor under {', '.join(_KEYS)}")
    others = [repr(name) for name in found if not isinstance(name, str)]
    if others:
        raise UserError(f"{path}: {_listed('names of a state_dict are strings, found', others)}")
    state = dict(found)
    while (
        prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), None)
    ) is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: this needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:
        raise UserError(f"{path}: safetensors cannot read it: {first_line(error)}") from error


def _listed(what: str, items: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{what} {', '.join(items[:shown])}{more}" if items else ""


@contextlib.contextmanager
def _importable(module_name: str) -> Iterator[None]:
    """Look for modules in the working directory, or beside a file as Python does for a script."""
    folder = str(Path(module_name).resolve().parent) if _is_file(module_name) else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _is_file(module_name: str) -> bool:
    return module_name.endswith(".py")


def _import(spec: str, module_name: str) -> ModuleType:
    try:
        return _import_file(module_name) if _is_file(module_name) else _import_module(module_name)
    except UserError as error:
        raise UserError(f"{spec}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec}: importing {module_name} raised {described(error)}") from error


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module's own imports may fail as well: that is another mistake.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"no module {error.name}, installed or in {Path.cwd()}") from error
        raise


def _import_file(name: str) -> ModuleType:
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError("no such file")
    # Under its path, so that two files may be called the same.
    if str(path) not in sys.modules:
        found = importlib.util.spec_from_file_location(str(path), path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[str(path)] = module
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[str(path)]
            raise
    return sys.modules[str(path)]


def _arguments(spec: str, query: str) -> dict[str, Any]:
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(f"{spec}: expected arguments as ?name=value&name=value") from error
    return {name: _literal(value) for name, value in given}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
