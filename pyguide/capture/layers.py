"""The layers of a model in the order in which they run."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.capture.outputs import activations, time_first_layers
from pyguide.capture.paths import first_paths, named_layers, unwrapped
from pyguide.capture.sharding import layer_class
from pyguide.capture.versions import version_of

__all__ = ["LayerInfo", "call_model", "list_layers", "undisturbed"]


@dataclass(frozen=True)
class LayerInfo:
    """One call of one layer, as :func:`list_layers` saw it."""

    #: Dotted path, without wrapper prefixes; what `pairs` takes.
    path: str
    #: Class name of the module.
    type: str
    #: Shape of what a pair with this layer compares, batch axis first.
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: 0 for the first call of the module in the forward pass, 1 for the second, ...
    call: int = 0


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
        Path, type, output shape and dtype of every submodule whose output stands for one
        tensor without an `extract` (see :class:`pyguide.Pair`). A container follows the
        layers in it. A module that is called several times is listed as often, with `call`
        counting up: ``"relu:1"`` is the second call of ``"relu"``.

    Examples
    --------
    >>> import torch
    >>> from pyguide import list_layers
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> for layer in list_layers(model, torch.zeros(2, 4)):
    ...     print(layer.path, layer.type, layer.shape)
    0 Linear (2, 8)
    1 ReLU (2, 8)
    """
    found: list[LayerInfo] = []
    calls: Counter[str] = Counter()

    def listener(path: str, time_first: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor, _ = activations(output, time_first)
            if tensor is not None:
                kind = layer_class(unwrapped(module)).__name__
                found.append(LayerInfo(path, kind, tuple(tensor.shape), tensor.dtype, calls[path]))
                calls[path] += 1

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(undisturbed(model, example))
        time_first = time_first_layers(model)
        for path, module in first_paths(named_layers(model)).items():
            hook = listener(path, unwrapped(module) in time_first)
            stack.callback(module.register_forward_hook(hook).remove)
        call_model(model, example)
    return found


@contextlib.contextmanager
def undisturbed(model: nn.Module, example: Any) -> Iterator[None]:
    """Eval mode without gradient; modes, buffers and random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone(), version_of(buffer))
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
                _put_back(buffer, before, version)
                module._buffers[name] = buffer


def _put_back(buffer: Tensor, before: Tensor, version: int | None) -> None:
    if version is None:  # of a network made in inference mode: only there can it be changed
        with torch.inference_mode():
            buffer.copy_(before)
    elif buffer._version != version:
        buffer.copy_(before)


def _leaves(example: Any) -> Iterator[Any]:
    if isinstance(example, dict):
        yield from example.values()
    elif isinstance(example, (tuple, list)):
        yield from example
    else:
        yield example
