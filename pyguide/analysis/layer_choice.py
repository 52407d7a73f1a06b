"""Which layers of a network are compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from pyguide.capture.paths import (
    find_layer,
    first_paths,
    is_glob,
    matching_layers,
    split_call,
    unwrapped,
)

__all__ = ["Call", "LayerChoice", "call_name"]

# One call of a layer: its path, and 0 for the first call in a forward pass.
Call = tuple[str, int]


class LayerChoice:
    """The layers that paths, calls of paths and globs mean.

    A layer that is named must be called and give what can be compared; of those that a glob
    matches, and of all modules, those that do are taken.

    Parameters
    ----------
    modules : mapping of str to nn.Module
        The network's, by path.
    layers : str, sequence of str or None
        None is every module in which no other is called.
    owner : str
        What messages call the network.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], layers: str | Sequence[str] | None, owner: str
    ) -> None:
        self.only_leaves = layers is None
        self._named: dict[str, set[int | None]] = {}
        self._globs: dict[str, list[str]] = {}
        for path in _listed(layers):
            if is_glob(path, modules):
                self._globs[path] = matching_layers(modules, path, owner)
            else:
                found = find_layer(modules, path, owner)
                name, call = (found, None) if found in modules else split_call(found)
                self._named.setdefault(name, set()).add(call)
        if not (self.only_leaves or self._named or self._globs):
            raise ValueError(f"no layers of the {owner} are named: give paths or globs, or None")
        paths: Iterable[str] = first_paths(modules)
        if not self.only_leaves:
            paths = dict.fromkeys([*self._named, *(p for ps in self._globs.values() for p in ps)])
        #: What can be observed of them.
        self.modules = {path: modules[path] for path in paths}
        self._leave_out_scripted(owner)

    def is_required(self, path: str) -> bool:
        """Whether the layer must be comparable."""
        return path in self._named

    def has(self, call: Call) -> bool:
        """Whether the call is chosen, of the modules that are observed."""
        path, count = call
        if self.only_leaves or not {None, count}.isdisjoint(self._named.get(path, ())):
            return True
        return any(path in paths for paths in self._globs.values())

    def missing(self, counts: Mapping[str, int]) -> list[str]:
        """The paths, calls and globs without a layer that was called so often."""
        named = [
            call_name((path, call or 0), call is not None)
            for path, calls in self._named.items()
            for call in calls
            if counts.get(path, 0) <= (call or 0)
        ]
        return named + [
            glob for glob, paths in self._globs.items() if not any(map(counts.get, paths))
        ]

    def _leave_out_scripted(self, owner: str) -> None:
        scripted = [p for p, module in self.modules.items() if _takes_no_hooks(module)]
        refused = [path for path in scripted if self.is_required(path)]
        if refused:
            raise TypeError(
                f"{', '.join(map(repr, refused))} of the {owner} is TorchScript, whose layers "
                "cannot be observed: name a layer around it, or compare the network before "
                "torch.jit.script"
            )
        outermost = [p for p in scripted if p.rpartition(".")[0] not in scripted]
        if outermost:
            warnings.warn(
                f"layers of the {owner} were left out because TorchScript cannot be observed: "
                f"{', '.join(map(repr, outermost))}",
                stacklevel=5,
            )
        for path in scripted:
            del self.modules[path]


def call_name(call: Call, repeated: bool) -> str:
    """The name of a layer, or of one of its calls."""
    return f"{call[0]}:{call[1]}" if repeated else call[0]


def _listed(layers: str | Sequence[str] | None) -> Sequence[str]:
    return [layers] if isinstance(layers, str) else (layers or ())


def _takes_no_hooks(module: nn.Module) -> bool:
    return isinstance(unwrapped(module), torch.jit.RecursiveScriptModule)
