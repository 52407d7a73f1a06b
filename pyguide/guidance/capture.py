"""Recording the outputs of layers with forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.guidance.layers import first_tensor, unwrapped

__all__ = ["Recorder"]


class Recorder:
    """Records what chosen layers of one model return while :attr:`recording` is set.

    The hooks are registered once, before a first call of the model, where torch.compile
    can see them. They never raise and never change an output: what is wrong with a
    record is said by :meth:`take`.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        The layers by path.
    owner : str
        "target" or "guide", for the errors.
    """

    def __init__(self, layers: Mapping[str, nn.Module], owner: str) -> None:
        self.owner = owner
        self.recording = False
        self._time_first = {path for path, layer in layers.items() if _is_time_first(layer)}
        # Path -> the tensor if there was one, its version then, the type of the output.
        self._records: dict[str, tuple[Tensor | None, int | None, str]] = {}
        self._repeated: set[str] = set()
        self._handles = {
            path: module.register_forward_hook(_Hook(self, path)) for path, module in layers.items()
        }

    def record(self, path: str, output: Any) -> None:
        if path in self._records:
            self._repeated.add(path)
            return
        tensor, version = first_tensor(output), None
        if tensor is not None:
            if torch.compiler.is_compiling():
                # Compiled code keeps no version counter that would tell of a later
                # in-place change, so keep what the layer returned.
                tensor = tensor.clone()
            elif not tensor.is_inference():
                version = tensor._version
        self._records[path] = tensor, version, type(output).__name__

    def recorded(self) -> list[str]:
        """Paths of the usable records in execution order: one call, one tensor."""
        if self._handles and not self._records:
            raise self._nothing_captured("any layer")
        return [
            path
            for path, (tensor, _, _) in self._records.items()
            if path not in self._repeated and tensor is not None
        ]

    def take(self, paths: Sequence[str]) -> list[Tensor]:
        """The recorded tensors of `paths`, batch axis first."""
        missing = [path for path in paths if path not in self._records]
        if missing:
            raise self._nothing_captured(", ".join(map(repr, missing)))
        return [self._take(path) for path in paths]

    def _nothing_captured(self, layers: str) -> RuntimeError:
        return RuntimeError(
            f"nothing was captured from {layers} of the {self.owner}: it was not called in the "
            "forward pass, or the model is compiled and it, or a model of the same class, was "
            "called earlier in this process: call torch.compiler.reset() after making Guidance "
            "or loading its state"
        )

    def _take(self, path: str) -> Tensor:
        layer = f"layer {path!r} of the {self.owner}"
        if path in self._repeated:
            raise RuntimeError(
                f"{layer} was called more than once in the capture window, so it is not "
                f"clear which output is meant: call the {self.owner} once a window, or pair "
                "a layer that is called once"
            )
        tensor, version, kind = self._records[path]
        if tensor is None:
            raise TypeError(
                f"{layer} returned {kind}: only a tensor, or a "
                "tuple that starts with one, can be captured; pair a layer inside or after it"
            )
        if version is not None and tensor._version != version:
            raise RuntimeError(
                f"the output of {layer} was modified in place after it was captured: set "
                "inplace=False on the activation that follows, or pair that activation "
                "instead"
            )
        time_first = path in self._time_first and tensor.dim() == 3
        return tensor.transpose(0, 1) if time_first else tensor

    def clear(self) -> None:
        """Forget the records, and with them the references to activations."""
        self.recording = False
        self._records = {}
        self._repeated = set()

    def keep(self, paths: Iterable[str]) -> None:
        """Remove the hooks of every other layer."""
        for path in self._handles.keys() - set(paths):
            self._handles.pop(path).remove()

    def remove(self) -> None:
        """Remove every hook and forget the records."""
        self.keep(())
        self.clear()


class _Hook:
    """A forward hook that passes the output on to a recorder."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        self.recorder = recorder
        self.path = path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.recorder.recording:
            self.recorder.record(self.path, output)

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        # deepcopy and pickle of a hooked model copy its hooks: the copy (an EMA of the
        # target, a checkpoint) must not write into this recorder.
        return _InertHook, ()


class _InertHook:
    """What a hook is in a copy of its model."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        return None


def _is_time_first(layer: nn.Module) -> bool:
    """Whether the layer is one of torch's that put time before the batch."""
    layer = unwrapped(layer)
    if isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        layer = layer.self_attn
    return isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and not layer.batch_first
