"""The modules of a model by their dotted paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

__all__ = [
    "NoSuchLayer",
    "find_layer",
    "first_paths",
    "is_glob",
    "matching_layers",
    "named_layers",
    "split_call",
    "unwrapped",
    "without_replicas",
]

# What torch.compile, FSDP and checkpoint_wrapper put between a layer and its parent.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class NoSuchLayer(ValueError):
    """A path or glob that means no layer; a listing of the layers would help.

    Attributes
    ----------
    problem : str
        The message without how to list the layers from Python.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; pyguide.list_layers lists its layers")
        self.problem = problem


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside compile, FSDP and checkpoint wrappers."""
    while True:
        inner = next((module._modules[w] for w in _WRAPPERS if w in module._modules), None)
        if inner is None:
            return module
        module = inner


def without_replicas(model: nn.Module) -> nn.Module:
    """The model inside DataParallel and DistributedDataParallel, also if that is compiled.

    The former gives its layers parts of a batch, the latter waits for other processes.
    """
    inner = unwrapped(model)
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return without_replicas(inner.module)
    return model


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its dotted path without wrapper prefixes.

    Where a wrapper and the module in it share a path, the wrapper has it: its output is
    the same, and lies outside what a checkpoint recomputes. Modules that compute a weight
    (weight_norm, say) are no layers.
    """
    root = model
    while len(root._modules) == 1:
        ((name, child),) = root._modules.items()
        if name not in (*_WRAPPERS, "module") or child is None:
            break
        root = child
    of_weights = {
        inner
        for module in root.modules()
        if isinstance(module, ParametrizationList)
        for inner in module.modules()
    }
    layers: dict[str, nn.Module] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        path = _without_wrappers(name)
        if path and module not in of_weights:
            layers.setdefault(path, module)
    return layers


def first_paths(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers, each only by the first of the paths that it is registered under."""
    first: dict[nn.Module, str] = {}
    for path, module in layers.items():
        first.setdefault(module, path)
    return {path: module for module, path in first.items()}


def _without_wrappers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def split_call(path: str) -> tuple[str, int | None]:
    """The path of the module, and which of its calls is meant: "relu:1" is the second."""
    found = re.fullmatch(r"(.+):(\d+)", path)
    return (found[1], int(found[2])) if found else (path, None)


def find_layer(layers: Mapping[str, nn.Module], path: str, owner: str) -> str:
    """The key of `layers` that `path` means, with its call; `owner` names the model in errors."""
    if path in layers:
        return path
    module, call = split_call(path)
    plain = _without_wrappers(module)
    while plain not in layers and plain.startswith("module."):
        plain = plain.removeprefix("module.")
    if plain in layers:
        return plain if call is None else f"{plain}:{call}"
    near = difflib.get_close_matches(plain, layers, n=3, cutoff=0.4)
    problem = f"the {owner} has no layer {path!r}"
    if not near:
        raise NoSuchLayer(problem)
    raise ValueError(f"{problem}; did you mean {' or '.join(map(repr, near))}?")


def is_glob(path: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a string means the layers that match it rather than one of that name."""
    return path not in layers and any(symbol in path for symbol in "*?[")


def matching_layers(layers: Mapping[str, nn.Module], pattern: str, owner: str) -> list[str]:
    """Paths of the modules that can be called and match a glob, each module once.

    ``*`` and ``?`` stand for characters of one part of a path, ``**`` for any number of parts,
    also none: ``**.conv1`` matches ``conv1``.
    """
    plain = _without_wrappers(pattern)
    while True:
        try:
            expression = re.compile(_regular_expression(plain))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no glob: {error}") from error
        found = {
            path: layer
            for path, layer in layers.items()
            # A ModuleList, say, has no forward pass.
            if expression.fullmatch(path) and type(layer).forward is not nn.Module.forward
        }
        if found or not plain.startswith("module."):
            break
        plain = plain.removeprefix("module.")
    if not found:
        raise NoSuchLayer(
            f"no layer of the {owner} matches {pattern!r}, where '*' stands for one part of a path "
            "and '**' for any number"
        )
    return list(first_paths(found))


def _regular_expression(pattern: str) -> str:
    symbols = {"**.": r"(?:.*\.)?", "**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"((?:^|(?<=\.))\*\*\.|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        part.replace("[!", "[^", 1)
        if part.startswith("[") and part.endswith("]")
        else symbols.get(part, re.escape(part))
        for part in parts
    )
