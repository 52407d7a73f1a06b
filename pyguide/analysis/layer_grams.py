"""Centred Gram matrices of a network's layers, computed while it runs."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.analysis.layer_choice import Call, LayerChoice, call_name
from pyguide.capture.layers import call_model, undisturbed
from pyguide.capture.outputs import activations, time_first_layers
from pyguide.capture.padding import filled, has_positions, valid_positions
from pyguide.capture.paths import named_layers, unwrapped, without_replicas
from pyguide.capture.versions import version_of
from pyguide.ops.hsic import CenteredGram, centered_grams
from pyguide.ops.inputs import check_layers

__all__ = ["LayerGrams"]


class LayerGrams:
    """Runs a network batch by batch and gives the centred Gram matrix of each of its layers.

    A Gram matrix is computed as soon as the layer returns, so that no activation lives longer
    than in the network itself, and nothing that follows can change it in place.

    As a context manager it puts the network into eval mode, without gradient, and leaves it as
    it was. The first batch settles which layers there are, and their order.

    Parameters
    ----------
    model : nn.Module
        The network.
    layers : str, sequence of str or None
        Paths, calls of paths and globs; None is every module in which no other is called.
    owner : str
        What messages call the network.
    debiased : bool
        The estimator.
    precision : str or None
        See :func:`pyguide.cka_pairs`.
    device : torch.device or None
        Where inputs go; by default to the network's first parameter or buffer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | None,
        owner: str,
        *,
        debiased: bool,
        precision: str | None,
        device: torch.device | None,
    ) -> None:
        if isinstance(unwrapped(model), torch.jit.ScriptModule):
            raise TypeError(
                f"the {owner} is TorchScript, whose layers cannot be observed: compare the network "
                "that torch.jit.script or torch.jit.trace was given"
            )
        self._model = without_replicas(model)
        self._owner = owner
        self._choice = LayerChoice(named_layers(model), layers, owner)
        self._gram = partial(centered_grams, debiased=debiased, precision=precision)
        self.device = _input_device(model, device, owner)
        self._settled: dict[Call, str] = {}
        self._shapes: dict[Call, tuple[int, ...]] = {}
        self._left_out: dict[Call, tuple[int, ...]] = {}
        self._refused: list[str] = []
        self._clear(0)

    @property
    def settled(self) -> bool:
        """Whether a batch has settled the layers."""
        return bool(self._settled)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers in the order in which they finished in the first batch."""
        return tuple(self._settled.values())

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Their shapes in the first batch, without the batch axis."""
        return tuple(self._shapes[call] for call in self._settled)

    def __enter__(self) -> LayerGrams:
        with contextlib.ExitStack() as stack:
            stack.enter_context(undisturbed(self._model, ()))
            time_first = time_first_layers(self._model)
            self._handles = {}
            for path, module in self._choice.modules.items():
                returned = partial(self._returned, path, unwrapped(module) in time_first)
                self._handles[path] = [module.register_forward_hook(returned)]
                if self._choice.only_leaves:
                    self._handles[path].append(module.register_forward_pre_hook(self._called))
            stack.callback(self._remove_hooks)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def __call__(self, inputs: Any, n: int, mask: Tensor | None = None) -> list[CenteredGram]:
        """The Gram matrices for one batch of n samples, in the order of `names`.

        Parameters
        ----------
        inputs : Tensor, tuple or dict
            On `device`; as :func:`call_model` takes them.
        n : int
            Size of the first axis.
        mask : Tensor, optional
            (n, T) bool, True where a position is valid, for layers that are (n, T, ...).
        """
        self._clear(n, mask)
        self._running = True
        try:
            call_model(self._model, inputs)
        finally:
            self._running = False
        if self._settled:
            self._check_calls()
        else:
            self._settle()
        return [self._grams.pop(call) for call in self._settled]

    def _clear(self, n: int, mask: Tensor | None = None) -> None:
        self._n = n
        self._mask = mask
        #: Whether the batch's mask was that of a layer.
        self.used_mask = False
        self._grams: dict[Call, CenteredGram] = {}
        self._counts: Counter[str] = Counter()
        self._open: list[bool] = []  # for each module that runs, whether it called another
        self._last: tuple[Any, int | None, Any] = (lambda: None), None, None
        self._running = False

    def _called(self, module: nn.Module, args: Any) -> None:
        """Before a module runs: until it returns, a call of another makes it a container."""
        if self._running:
            self._open.append(False)

    def _returned(
        self, path: str, time_first: bool, module: nn.Module, args: Any, output: Any
    ) -> None:
        if not self._running:  # the other network may have this module too
            return
        call = (path, self._counts[path])
        self._counts[path] += 1
        if self._open:
            is_container = self._open.pop()
            if self._open:
                self._open[-1] = True
            if is_container:
                return
        if call in self._settled if self._settled else self._choice.has(call):
            self._record(call, *activations(output, time_first), output)

    def _record(self, call: Call, x: Tensor | None, mask: Tensor | None, output: Any) -> None:
        layer = f"layer {call_name(call, call[1] > 0)!r} of the {self._owner}"
        may_leave_out = not self._settled and not self._choice.is_required(call[0])
        if x is None or not x.is_floating_point():
            if may_leave_out:
                return
            raise TypeError(
                f"{layer} gave {type(output).__name__ if x is None else x.dtype}: one tensor of "
                "floating point is needed; compare a layer inside or after it"
            )
        if x.dim() == 0 or x.size(0) != self._n:
            if may_leave_out:
                self._left_out[call] = tuple(x.shape)
                return
            raise ValueError(
                f"{layer} gave {tuple(x.shape)} for a batch of {self._n} samples: the first axis "
                "must be the batch; compare other layers"
            )
        try:
            check_layers([(layer, [x])], min_samples=0)
        except (TypeError, ValueError) as error:
            if not may_leave_out:
                raise
            self._refused.append(str(error).replace(f" of the {self._owner}", ""))
            return
        self._grams[call] = self._gram_of(x, mask)
        if not self._settled:
            self._shapes[call] = tuple(x.shape[1:])

    def _gram_of(self, x: Tensor, mask: Tensor | None) -> CenteredGram:
        # In eval mode a Dropout returns its input: that has its Gram matrix already.
        version = version_of(x)
        same, same_version, gram = self._last
        if same() is x and version is not None and version == same_version:
            return gram
        (gram,) = self._gram([filled(x, self._valid(x, mask))])
        # Parts of a network may be on other devices. MPS has no float64: its matrices are on CPUs.
        if self.device is not None and self.device.type != "mps":
            gram = CenteredGram(*(t.to(self.device) for t in gram))
        self._last = weakref.ref(x), version, gram
        return gram

    def _valid(self, x: Tensor, own: Tensor | None) -> Tensor | None:
        if self._mask is not None:
            self.used_mask |= has_positions(tuple(x.shape), self._mask)
        return valid_positions(x, own, self._mask)

    def _settle(self) -> None:
        missing = self._choice.missing(self._counts)
        if missing:
            raise ValueError(
                f"{', '.join(map(repr, missing))} of the {self._owner} was not called: name layers "
                "that the forward pass in eval mode calls (':0' is the first call of a layer)"
            )
        self._warn_of_left_out()
        if not self._grams:
            chosen = "its submodules" if self._choice.only_leaves else "those that match"
            raise ValueError(
                f"no layer of the {self._owner} can be compared: none of {chosen} was called "
                "and gave a tensor of floating point whose first axis is the batch"
            )
        self._settled = {call: call_name(call, self._counts[call[0]] > 1) for call in self._grams}
        self._check_names()
        self._first_counts = self._counts
        kept = {path for path, _ in self._settled}
        for path in self._handles.keys() - kept:
            for handle in self._handles.pop(path):
                handle.remove()
        for _, *before in self._handles.values():
            for handle in before:
                handle.remove()

    def _warn_of_left_out(self) -> None:
        without_batch = ", ".join(
            f"{call_name(c, c[1] > 0)!r} {s}" for c, s in self._left_out.items()
        )
        if without_batch:
            warnings.warn(
                f"layers of the {self._owner} were left out because the first axis of what they "
                f"gave is not the batch of {self._n} samples: {without_batch}",
                stacklevel=6,
            )
        if self._refused:
            warnings.warn(
                f"layers of the {self._owner} were left out: {'; '.join(self._refused)}",
                stacklevel=6,
            )

    def _check_names(self) -> None:
        calls: dict[str, Call] = {}
        for call, name in self._settled.items():
            other = calls.setdefault(name, call)
            if other != call:
                called, module = sorted((other[0], call[0]), key=len)
                raise ValueError(
                    f"the {self._owner} has two layers {name!r}, a call of {called!r} and the "
                    f"module {module!r}: rename one of these modules, or compare them one at a "
                    "time with layers="
                )

    def _check_calls(self) -> None:
        for path in dict.fromkeys(path for path, _ in self._settled):
            now, before = self._counts[path], self._first_counts[path]
            if now != before:
                raise RuntimeError(
                    f"layer {path!r} of the {self._owner} was called {now} times in this batch and "
                    f"{before} times in the first: only layers that every batch calls equally "
                    "often can be compared"
                )

    def _remove_hooks(self) -> None:
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles = {}


def _input_device(model: nn.Module, device: torch.device | None, owner: str) -> torch.device | None:
    """The device, which the network must be on; None is that of its first tensor, if any."""
    places = {t.device: None for t in (*model.parameters(), *model.buffers())}
    if any(place.type == "meta" for place in places):
        raise ValueError(f"the {owner} is on meta, without data: load its weights first")
    if device is None:
        return next(iter(places), None)
    if places and not any(
        device.type == place.type and device.index in (None, place.index) for place in places
    ):
        raise ValueError(
            f"the {owner} is on {', '.join(map(str, places))}, device is {device}: move the "
            "network there first, or leave device out"
        )
    return device
