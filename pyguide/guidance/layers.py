"""The layers of a model: their paths, their order of execution and their outputs."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "LayerInfo",
    "call_model",
    "find_layer",
    "first_paths",
    "first_tensor",
    "list_layers",
    "named_layers",
]

# What torch.compile, FSDP and checkpoint_wrapper put between a layer and its parent.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class LayerInfo:
    """One call of one layer, as :func:`list_layers` saw it."""

    #: Dotted path, without wrapper prefixes; what `pairs` takes.
    path: str
    #: Class name of the module.
    type: str
    #: Shape of the output (of its first tensor, if it is a tuple).
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: 0 for the first call of the module in the forward pass, 1 for the second, ...
    call: int = 0


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside compile, FSDP and checkpoint wrappers."""
    while True:
        inner = next((module._modules[w] for w in _WRAPPERS if w in module._modules), None)
        if inner is None:
            return module
        module = inner


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its dotted path without wrapper prefixes.

    Where a wrapper and the module in it share a path, the wrapper has it: its output is
    the same, and lies outside what a checkpoint recomputes.
    """
    root = model
    while len(root._modules) == 1:
        ((name, child),) = root._modules.items()
        if name not in (*_WRAPPERS, "module") or child is None:
            break
        root = child
    layers: dict[str, nn.Module] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        path = _without_wrappers(name)
        if path:
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


def find_layer(layers: Mapping[str, nn.Module], path: str, owner: str) -> str:
    """The key of `layers` that `path` means; `owner` names the model in the error."""
    if path in layers:
        return path
    plain = _without_wrappers(path)
    while plain not in layers and plain.startswith("module."):
        plain = plain.removeprefix("module.")
    if plain in layers:
        return plain
    near = difflib.get_close_matches(plain, layers, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"the {owner} has no layer {path!r}; {hint or 'pyguide.list_layers lists its layers'}"
    )


def first_tensor(output: object) -> Tensor | None:
    """The activations in a layer's output: a tensor, or a tuple's first item.

    None for anything else. A PackedSequence is a tuple whose first item has no batch axis.
    """
    if isinstance(output, (tuple, list)) and not isinstance(output, PackedSequence):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call with one tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(inputs)


def list_layers(model: nn.Module, example: Any) -> list[LayerInfo]:
    """The layers of a model in the order in which they finish.

    Runs one forward pass in eval mode without gradient. The model is left as it was:
    training modes, buffers and hooks; so are the random number generators.

    Parameters
    ----------
    model : nn.Module
        The model; torch.compile, DDP and checkpoint wrappers are looked through.
    example : Tensor, tuple or dict
        An input on the model's device: one argument, positional or keyword arguments.

    Returns
    -------
    list of LayerInfo
        Path, type, output shape and dtype of every submodule whose output is a tensor,
        or a tuple that starts with one. A container follows the layers in it. A module
        that is called several times is listed as often, with `call` counting up.

    Examples
    --------
    >>> import torch
    >>> from pyguide.guidance import list_layers
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> for layer in list_layers(model, torch.zeros(2, 4)):
    ...     print(layer.path, layer.type, layer.shape)
    0 Linear (2, 8)
    1 ReLU (2, 8)
    """
    found: list[LayerInfo] = []
    calls: Counter[str] = Counter()

    def listener(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                kind = type(unwrapped(module)).__name__
                found.append(LayerInfo(path, kind, tuple(tensor.shape), tensor.dtype, calls[path]))
                calls[path] += 1

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(_undisturbed(model, example))
        for path, module in first_paths(named_layers(model)).items():
            stack.callback(module.register_forward_hook(listener(path)).remove)
        call_model(model, example)
    return found


@contextlib.contextmanager
def _undisturbed(model: nn.Module, example: Any) -> Iterator[None]:
    """Eval mode without gradient; modes, buffers and random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not nn.parameter.is_lazy(buffer)
    ]
    tensors = [*model.parameters(), *(t for t in _leaves(example) if isinstance(t, Tensor))]
    gpus = sorted({t.get_device() for t in tensors if t.is_cuda})
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # Eagerly: a compiled model would not see hooks that are added later. Nothing
            # can be compiled where dynamo, slow to import, was never imported.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.no_grad())
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, before, version in buffers:
                if buffer._version != version:
                    buffer.copy_(before)
                module._buffers[name] = buffer


def _leaves(example: Any) -> Iterator[Any]:
    if isinstance(example, dict):
        yield from example.values()
    elif isinstance(example, (tuple, list)):
        yield from example
    else:
        yield example
