"""The time that guidance takes of a training step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["StepClock", "device_of"]

_Mark = float | torch.cuda.Event


class StepClock:
    """Times parts of a model's training steps without waiting for its device.

    On CUDA a mark is an event in the current stream, which :meth:`seconds` waits for;
    elsewhere it is a monotonic clock's reading.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._start: _Mark | None = None
        self._step: tuple[_Mark, _Mark] | None = None
        # Name -> [start, end] of each of its spans, in this step and in the last.
        self._spans: dict[str, list[list[_Mark]]] = {}
        self._last: dict[str, list[list[_Mark]]] = {}

    def start_step(self) -> None:
        """The first call after :meth:`end_step` starts the step."""
        if self._start is None:
            self._start = self._now()

    def end_step(self) -> None:
        if self._start is not None:
            self._step = self._start, self._now()
            self._last = self._spans
        self._start, self._spans = None, {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        span = [self._now()]
        self._spans.setdefault(name, []).append(span)
        yield
        span.append(self._now())

    def time_backward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`inputs` for a function whose backward ends when it reaches them."""
        aliases = {id(x): x.view_as(x) for x in inputs if x.requires_grad}
        for alias in aliases.values():
            alias.register_hook(self._end_backward)
        return [aliases.get(id(x), x) for x in inputs]

    def start_backward_at(self, output: Tensor) -> None:
        """The backward of :meth:`time_backward`'s function starts at its `output`."""
        if output.requires_grad:
            output.register_hook(self._start_backward)

    def _now(self) -> _Mark:
        return _mark(device_of(self._model))

    def _start_backward(self, grad: Tensor) -> None:
        self._spans.setdefault("backward", []).append([_mark(grad.device)])

    def _end_backward(self, grad: Tensor) -> None:
        # Called for each input: the last call is the end.
        span = self._spans["backward"][-1]
        span[1:] = [_mark(grad.device)]

    def seconds(self) -> dict[str, float]:
        """Seconds of every part of the last step and, as "step", of the step."""
        if self._step is None:
            return {}
        parts = {
            name: sum(_seconds(*span) for span in spans if len(span) == 2)
            for name, spans in self._last.items()
        }
        return parts | {"step": _seconds(*self._step)}


def device_of(model: nn.Module) -> torch.device | None:
    """Where the parameters of a model are; None without any."""
    return next((p.device for p in model.parameters()), None)


def _mark(device: torch.device | None) -> _Mark:
    if device is None or device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    end.synchronize()
    return start.elapsed_time(end) / 1000
