"""Recording the outputs of layers with forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyguide.capture.layers import call_model, undisturbed
from pyguide.capture.outputs import activations, time_first_layers
from pyguide.capture.paths import split_call, unwrapped
from pyguide.capture.versions import version_of

__all__ = ["Captured", "Extract", "Recorder", "Source", "observed"]

Extract = Callable[[Any], Any]


class Source(NamedTuple):
    """One layer whose activations are wanted."""

    path: str
    #: Which call of the layer; None if it has only one.
    call: int | None = None
    #: Takes what is compared out of the layer's output.
    extract: Extract | None = None

    @classmethod
    def of(cls, layers: Mapping[str, nn.Module], path: str, extract: Extract | None) -> Source:
        """From a path as a pair has it, which may end in a call."""
        return cls(path, None, extract) if path in layers else cls(*split_call(path), extract)

    @property
    def name(self) -> str:
        return self.path if self.call is None else f"{self.path}:{self.call}"


class Captured(NamedTuple):
    """Activations, batch axis first, and their (n, T) padding mask if they have one."""

    tensor: Tensor
    mask: Tensor | None
    #: (n, n) centred Gram matrix, where that is known in place of the values: `tensor` is on the
    #: meta device then.
    gram: Tensor | None = None


class _Record(NamedTuple):
    source: Source
    call: int
    tensor: Tensor | None
    mask: Tensor | None
    version: int | None
    type: str


class Recorder:
    """Records what chosen layers of one model return while :attr:`recording` is set.

    The hooks are registered once, before a first call of the model, where torch.compile
    can see them. They never change an output, and but for a failing `extract` they never
    raise: what is wrong with a record is said by :meth:`take`.

    Parameters
    ----------
    model : nn.Module
        The model.
    layers : mapping of str to nn.Module
        Its layers by path.
    sources : iterable of Source
        What to record.
    owner : str
        "target" or "guide", for the errors.
    repeats : bool
        Whether the layers of `sources` may be called several times.
    shapes_only : bool
        Record tensors on the meta device instead of the activations.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        sources: Iterable[Source],
        owner: str,
        *,
        repeats: bool = False,
        shapes_only: bool = False,
    ) -> None:
        self.owner = owner
        self.recording = False
        self.shapes_only = shapes_only
        self._model = model
        self._layers = layers
        self._sources = _by_path(sources)
        time_first = time_first_layers(model)
        self._time_first = {p for p in self._sources if unwrapped(layers[p]) in time_first}
        self._handles = {
            path: layers[path].register_forward_hook(_Hook(self, path)) for path in self._sources
        }
        if repeats or any(s.call is not None for s in self._wanted()):
            self._handles[""] = model.register_forward_hook(_Hook(self, ""))
        self.clear()

    def clear(self) -> None:
        """Forget the records, and with them the references to activations."""
        self.recording = False
        self._records: list[_Record] = []
        self._calls: dict[str, int] = {}

    def keep(self, sources: Iterable[Source]) -> None:
        """Record only `sources` from now on, and remove every other hook."""
        self._sources = _by_path(sources)
        kept = set(self._sources)
        if any(s.call is not None for s in self._wanted()):
            kept.add("")
        for path in self._handles.keys() - kept:
            self._handles.pop(path).remove()

    def remove(self) -> None:
        """Remove every hook and forget the records."""
        self.keep(())
        self.clear()

    def _wanted(self) -> list[Source]:
        return [source for sources in self._sources.values() for source in sources]

    def record(self, path: str, output: Any) -> None:
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        for source in self._sources.get(path, ()):
            if source.call is None or source.call == call:
                self._records.append(self._record(source, call, output))

    def _record(self, source: Source, call: int, output: Any) -> _Record:
        if source.extract is None:
            tensor, mask = activations(output, source.path in self._time_first)
        else:
            output = source.extract(output)
            tensor, mask = activations(output, time_first=False)
        version = None
        if tensor is not None:
            if self.shapes_only:
                tensor, mask = torch.empty_like(tensor, device="meta"), None
            elif torch.compiler.is_compiling() or tensor.is_inference():
                # These keep no version counter that would tell of a later in-place change,
                # so keep what the layer returned.
                tensor = tensor.clone()
            else:
                version = version_of(tensor)
        return _Record(source, call, tensor, mask, version, type(output).__name__)

    def calls(self) -> list[tuple[str, int]]:
        """Path and number of every call that gave a tensor, in execution order."""
        if self._sources and not self._records:
            raise self._nothing_captured("any layer")
        self._check_one_forward()
        found = [(r.source.path, r.call) for r in self._records if r.tensor is not None]
        return list(dict.fromkeys(found))

    def take(self, sources: Sequence[Source]) -> list[Captured]:
        """The recorded activations of `sources`."""
        missing = [s.path for s in sources if not self._calls.get(s.path)]
        if missing:
            raise self._nothing_captured(", ".join(map(repr, missing)))
        if any(source.call is not None for source in sources):
            self._check_one_forward()
        return [self._take(source) for source in sources]

    def _nothing_captured(self, layers: str) -> RuntimeError:
        return RuntimeError(
            f"nothing was captured from {layers} of the {self.owner}: it was not called in the "
            "forward pass, or the model is compiled and it, or a model of the same class, was "
            "called earlier in this process: call torch.compiler.reset() after making Guidance "
            "or loading its state"
        )

    def _check_one_forward(self) -> None:
        # A layer that is called once a forward pass would pass for one that is called twice.
        if self._calls.get("", 0) > 1:
            raise RuntimeError(
                f"the {self.owner} was called more than once in the capture window, so it is not "
                f"clear which calls of its layers are meant: call the {self.owner} once a window"
            )

    def _take(self, source: Source) -> Captured:
        layer = f"layer {source.name!r} of the {self.owner}"
        count = self._calls[source.path]
        if source.call is None and count > 1:
            raise RuntimeError(
                f"{layer} was called more than once in the capture window, so it is not "
                f"clear which output is meant: call the {self.owner} once a window, or pair one "
                f"of its {count} calls, {f'{source.path}:0'!r} the first"
            )
        if source.call is not None and source.call >= count:
            raise RuntimeError(
                f"there is no {layer}: {source.path!r} was called {count} times, and ':0' is "
                "the first call"
            )
        record = next(
            r
            for r in self._records
            if r.source.path == source.path
            and r.source.extract == source.extract
            and r.call == (source.call or 0)
        )
        return Captured(_checked_tensor(record, layer), record.mask)

    def check_gradients(self, sources: Sequence[Source], captured: Sequence[Captured]) -> None:
        """Raise if grad mode is on and what was captured of a trainable model has no gradient."""
        if not torch.is_grad_enabled():
            return
        without = [s for s, c in zip(sources, captured, strict=True) if not c.tensor.requires_grad]
        if without and any(p.requires_grad for p in self._model.parameters()):
            layers = [self._layers[source.path] for source in without]
            if any(source.extract is not None for source in without):
                cause = "`extract` detached it, or the forward pass ran under no_grad"
            elif any(p.requires_grad for layer in layers for p in layer.parameters()):
                cause = (
                    "the forward pass ran under no_grad, or in a checkpoint with "
                    "use_reentrant=True: set it to False"
                )
            else:
                cause = (
                    "the layers up to it are frozen, or ran under no_grad: give the pairs as a "
                    "list, without it"
                )
            raise RuntimeError(
                f"the captured output of {', '.join(repr(s.name) for s in without)} of the "
                f"{self.owner} has no gradient, so guidance could not train it; {cause}"
            )


def observed(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    sources: Iterable[Source],
    owner: str,
    inputs: Any,
    transform: Callable[[Any], Any] | None = None,
) -> Recorder:
    """A recorder without hooks that holds the shapes of one undisturbed forward pass."""
    recorder = Recorder(model, layers, sources, owner, repeats=True, shapes_only=True)
    try:
        with undisturbed(model, inputs):
            inputs = inputs if transform is None else transform(inputs)
            recorder.recording = True
            call_model(model, inputs)
    finally:
        recorder.recording = False
        recorder.keep(())
    return recorder


def _by_path(sources: Iterable[Source]) -> dict[str, list[Source]]:
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(source.path, []).append(source)
    return found


def _checked_tensor(record: _Record, layer: str) -> Tensor:
    """The tensor of a record, if it is what the layer returned."""
    tensor = record.tensor
    if tensor is None:
        what = "`extract` of " * (record.source.extract is not None)
        raise TypeError(
            f"{what}{layer} returned {record.type}, and which tensor of it is meant is not clear: "
            "give pyguide.Pair(target, guide, extract=...) a function that takes the output and "
            "returns that tensor, or pair a layer inside or after it"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{layer} gave {tensor.dtype}: only floating point can be compared")
    if record.version is not None and tensor._version != record.version:
        raise RuntimeError(
            f"the output of {layer} was modified in place after it was captured: set "
            "inplace=False on the activation that follows, or pair that activation "
            "instead"
        )
    return tensor


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
