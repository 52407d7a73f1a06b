"""Running the frozen guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyguide.capture.layers import call_model
from pyguide.guidance.schedules import whole_number

__all__ = ["FrozenGuide"]

_MODES = ("eval", "batch_stats", "calibrated")


class FrozenGuide:
    """Runs a guide without gradient and leaves its parameters and buffers as they are.

    Parameters
    ----------
    model : nn.Module
        The guide.
    mode : "eval", "batch_stats" or "calibrated"
        Which statistics its BatchNorm layers use: their own; the batch's; the mean of the
        first `calibration_batches` batches', and the batch's own until then. Everything
        else is in eval mode.
    transform : callable, optional
        Makes the guide's input from the target's. Its ``state_dict()`` and
        ``load_state_dict()``, if it has them, are part of this object's.
    calibration_batches : int
        Forward passes from which "calibrated" takes its statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "eval",
        transform: Callable[[Any], Any] | None = None,
        calibration_batches: int = 8,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"guide_mode must be one of {_MODES}, got {mode!r}")
        if transform is not None and not callable(transform):
            raise ValueError(f"guide_transform must be callable, got {transform!r}")
        self.model = model
        self.mode = mode
        self.transform: Any = transform
        self.calibration_batches = whole_number("calibration_batches", calibration_batches, 1)
        #: Forward passes that "calibrated" took statistics from.
        self.calibrated = 0
        self._modules = list(model.modules())
        self._buffers = _CopiedBuffers(self._modules)
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if mode != "eval" and isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._statistics: dict[str, dict[str, Tensor]] = {}

    def freeze(self) -> None:
        """Eval mode and no gradient: a parent's train() or requires_grad_() undoes them."""
        if any(module.training for module in self._modules):
            self.model.eval()
        for parameter in self._parameters():
            if parameter.requires_grad:
                parameter.requires_grad = False
            # An optimizer over a parent of both networks would apply it.
            if parameter.grad is not None:
                parameter.grad = None

    def tensors(self) -> Iterator[Tensor]:
        """Its parameters and buffers."""
        yield from self._parameters()
        for module in self._modules:
            yield from (buffer for buffer in module._buffers.values() if buffer is not None)

    def _parameters(self) -> Iterator[Tensor]:
        # As they are now: load_state_dict(assign=True) puts others in their place.
        for module in self._modules:
            yield from (p for p in module._parameters.values() if p is not None)

    def run(self, x: Any, inputs: Any = None) -> None:
        """One forward pass on `inputs`, or else on the transform of `x`."""
        self.freeze()
        # Copies of buffers and statistics that are made here are for later steps too, and
        # inference tensors could not change in these.
        with torch.inference_mode(False), torch.no_grad():
            if inputs is None:
                inputs = x if self.transform is None else self.transform(x)
            with self._buffers.used(), self._batch_norm():
                call_model(self.model, inputs)

    def state_dict(self) -> dict[str, Any]:
        """The mode, the statistics of "calibrated" and the state of the transform."""
        state: dict[str, Any] = {"mode": self.mode}
        if self.mode == "calibrated":
            state["calibrated"] = self.calibrated
            state["statistics"] = {
                name: {key: value.clone() for key, value in values.items()}
                for name, values in self._statistics.items()
            }
        if hasattr(self.transform, "state_dict"):
            state["transform"] = self.transform.state_dict()
        return state

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if `state` is of another mode or another guide."""
        if state["mode"] != self.mode:
            raise ValueError(
                f"the state is of guide_mode={state['mode']!r}, this Guidance has {self.mode!r}"
            )
        for name, values in state.get("statistics", {}).items():
            mean = self._norms[name].running_mean if name in self._norms else None
            if mean is None or mean.shape != values["running_mean"].shape:
                raise ValueError(
                    f"the state has BatchNorm statistics of {name!r} that do not fit this guide"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that passes :meth:`check_state`."""
        if self.mode == "calibrated":
            self.calibrated = int(state["calibrated"])
            self._statistics = {
                name: _statistics(self._norms[name], values, values["num_batches_tracked"])
                for name, values in state["statistics"].items()
            }
        if "transform" in state and hasattr(self.transform, "load_state_dict"):
            self.transform.load_state_dict(state["transform"])

    @contextmanager
    def _batch_norm(self) -> Iterator[None]:
        """BatchNorm layers use the statistics of the mode; they are put back after."""
        calibrating = self.mode == "calibrated" and self.calibrated < self.calibration_batches
        before = [
            (norm, norm.track_running_stats, norm.momentum, dict(norm._buffers))
            for norm in self._norms.values()
        ]
        try:
            for name, norm in self._norms.items():
                if self.mode == "batch_stats":
                    # Without tracking the forward pass does not touch the buffers.
                    norm.training, norm.track_running_stats = True, False
                else:
                    if name not in self._statistics:
                        self._statistics[name] = _statistics(norm, norm._buffers, batches=0)
                    norm._buffers.update(self._statistics[name])
                    # Without a momentum the statistics are the mean over all batches.
                    norm.training, norm.momentum = calibrating, None
            yield
        finally:
            for norm, tracking, momentum, buffers in before:
                norm.training, norm.track_running_stats, norm.momentum = False, tracking, momentum
                norm._buffers.update(buffers)
        self.calibrated += calibrating


def _statistics(
    norm: _BatchNorm, values: Mapping[str, Tensor | None], batches: Tensor | int
) -> dict[str, Tensor]:
    """Copies of BatchNorm statistics on the device of `norm`."""
    statistics = {}
    for key in ("running_mean", "running_var"):
        own, value = norm._buffers[key], values[key]
        assert own is not None and value is not None
        statistics[key] = value.to(own.device, own.dtype, copy=True)
    # The forward pass reads the counter on the host, so it is there.
    return statistics | {"num_batches_tracked": torch.as_tensor(batches, device="cpu").clone()}


class _CopiedBuffers:
    """Lets modules run on copies of their buffers, so that they cannot change them."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        # Buffer and its version, copy and its version: to copy only after a change.
        self._copies: dict[tuple[nn.Module, str], tuple[Tensor, int, Tensor, int]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        before = [
            (module, name, buffer)
            for module in self._modules
            for name, buffer in module._buffers.items()
        ]
        try:
            for module, name, buffer in before:
                if buffer is not None and not isinstance(buffer, nn.UninitializedBuffer):
                    module._buffers[name] = self._copy(module, name, buffer)
            yield
        finally:
            for module, name, buffer in before:
                module._buffers[name] = buffer

    def _copy(self, module: nn.Module, name: str, buffer: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # There are no versions there, and a copy that does not change costs nothing.
            return buffer.clone()
        if (module, name) in self._copies:
            original, version, copy, copy_version = self._copies[module, name]
            unchanged = version == _version(buffer) and copy_version == _version(copy)
            if original is buffer and unchanged:
                return copy
        copy = buffer.clone()
        self._copies[module, name] = buffer, _version(buffer), copy, _version(copy)
        return copy


def _version(buffer: Tensor) -> int:
    # Inference tensors have none; outside inference mode they cannot change.
    return 0 if buffer.is_inference() else buffer._version
