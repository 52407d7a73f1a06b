"""The two networks of a guidance: which layers are paired, and what a step captures of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyguide.capture.paths import named_layers
from pyguide.capture.recorder import Recorder, Source, observed
from pyguide.distances import Distance, get_distance
from pyguide.guidance.all_processes import ProcessGroup, global_batch_of
from pyguide.guidance.cache_checks import (
    check_count,
    check_distance,
    check_guide,
    check_mask,
    check_pairs,
    checked_ids,
)
from pyguide.guidance.comparison import Captures, Comparison
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.guide_cache import GuideCache
from pyguide.guidance.kept_batch import KeptBatch
from pyguide.guidance.pairing import Pair, make_pairing
from pyguide.guidance.plan import Plan, make_plan
from pyguide.guidance.timing import device_of
from pyguide.ops.tracing import not_traced

__all__ = ["GuidedNetworks"]


class GuidedNetworks:
    """The part of :class:`pyguide.Guidance` that pairs layers, captures them and plans.

    Its parameters are those of Guidance. Without hooks until :meth:`_attach`.
    """

    def __init__(
        self,
        target: nn.Module,
        guide: FrozenGuide,
        pairs: str | Iterable[Pair | tuple[str, str]],
        distance: str | Distance,
        example: Any,
        process_group: ProcessGroup | str | None,
        guide_cache: GuideCache | None = None,
    ) -> None:
        _check_separate(target, guide.model)
        self.target = target
        self.guide = guide.model
        self._guide = guide
        #: What the guide gave for samples that were seen before.
        self.guide_cache = guide_cache
        self.distance = get_distance(distance)
        self._global = global_batch_of(self.distance, process_group)
        if isinstance(guide_cache, GuideCache):
            check_guide(guide, guide_cache.key)
            check_distance(guide_cache.keep, self.distance, together=self._global is not None)
        elif guide_cache is not None:
            raise TypeError(
                f"guide_cache must be a pyguide.guidance.GuideCache, got {guide_cache!r}"
            )
        #: The (target path, guide path) pairs; None while rules and globs are not resolved.
        self.pairs: list[tuple[str, str]] | None = None
        self._target_layers = named_layers(target)
        self._guide_layers = named_layers(guide.model)
        self._captured = False
        self._closed = False
        self._recorders: tuple[Recorder, Recorder] | None = None
        self._comparison: Comparison | None = None
        # What the first loss() compared, on the meta device.
        self._seen: tuple[list[Tensor], ...] | None = None
        self._pairing = make_pairing(pairs, self._target_layers, self._guide_layers)
        if self._pairing.pairs is not None:
            self._set_pairs(self._pairing.pairs)
        elif example is not None:
            self._set_pairs(self._pairing.resolve(*(r.calls() for r in self._observe(example))))

    def plan(self, example: Any = None, guide_inputs: Any = None) -> Plan:
        """What will be compared, how and at what cost; ``print(guidance.plan(x))``.

        Runs one forward pass of both networks in eval mode and leaves both as they were.
        Padding is not taken into account.

        Parameters
        ----------
        example : Tensor, tuple or dict, optional
            An input for both networks. Without it, the shapes of the first :meth:`loss`.
        guide_inputs : Tensor, tuple or dict, optional
            What the guide sees instead of `example`.

        Returns
        -------
        Plan
            Pairs, shapes, dtypes, route, multiply-adds and bytes, and totals.

        Raises
        ------
        RuntimeError
            Without an example before the first :meth:`loss`.

        Examples
        --------
        >>> import torch, pyguide
        >>> from torch import nn
        >>> target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
        >>> plan = pyguide.Guidance(target, guide).plan(torch.randn(64, 8))
        >>> plan.rows[0].guide_shape, plan.rows[0].route
        ((64, 32), 'sample')
        """
        if example is None:
            if self._comparison is None or self._seen is None:
                raise RuntimeError("plan() needs an example until loss() has run: plan(x)")
            return make_plan(self._comparison, *self._seen)
        return make_plan(*self._compared_layers(example, guide_inputs))

    def close(self) -> None:
        """Remove every hook; the object cannot be used afterwards."""
        self._closed = True
        self._detach()

    def __reduce__(self) -> NoReturn:
        # The hooks of a copied model are inert, so a copy could never capture.
        raise TypeError(
            "Guidance cannot be copied or pickled: make one for the copied networks, and give "
            "it state_dict() of this one with load_state_dict()"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Guidance is closed")

    def _start_capture(self, recording: bool) -> None:
        """Forget what was captured; record the target from now on, if `recording`."""
        if self._recorders is None:
            return
        recorder = self._recorders[0]
        if recorder.recording:
            raise RuntimeError("guidance.capture() is already open")
        recorder.clear()
        self._captured = False
        recorder.recording = recording

    def _end_capture(self, failed: bool) -> None:
        if self._recorders is None:
            return
        recorder = self._recorders[0]
        self._captured = recorder.recording and not failed
        recorder.recording = False
        if failed:
            recorder.clear()

    def _activations(
        self,
        x: Any,
        guide_inputs: Any,
        sample_ids: Tensor | None,
        guide_time: AbstractContextManager[None],
    ) -> tuple[Comparison, Captures, Captures]:
        """The captured layers of the target, and the guide's from its cache or from running it."""
        target, guide = self._captured_networks()
        self._captured = False
        try:
            with guide_time:
                # Where there is none, compiled code must not break at it.
                ys = None if self.guide_cache is None else self._from_cache(sample_ids)
                if ys is None:
                    guide.recording = True
                    self._guide.run(x, guide_inputs)
                    guide.recording = False
            comparison = self._comparison or self._resolve(target, guide)
            xs = target.take(comparison.target_sources)
            if self.guide_cache is not None and sample_ids is not None:
                check_count(sample_ids, xs)
            if ys is None:
                ys = guide.take(comparison.guide_sources)
                ys = ys if self.guide_cache is None else self._to_cache(sample_ids, ys)
            target.check_gradients(comparison.target_sources, xs)
        finally:
            target.clear()
            guide.clear()
        if self._seen is None and not torch.compiler.is_compiling():
            self._seen = tuple(
                [torch.empty_like(captured.tensor, device="meta") for captured in side]
                for side in (xs, ys)
            )
        return comparison, xs, ys

    @not_traced
    def _from_cache(self, sample_ids: Tensor | None) -> Captures | None:
        """The guide's activations of a batch, if all of them are in its cache."""
        batch = self._kept_batch(sample_ids)
        if batch is None or self.guide_cache is None:
            return None
        self.guide_cache.hits += 1
        return batch.take_all()

    @not_traced
    def _to_cache(self, sample_ids: Tensor | None, ys: Captures) -> Captures:
        """Keep the guide's activations of a batch; what is compared in their place."""
        cache, comparison = self.guide_cache, self._comparison
        if cache is None or comparison is None:
            return ys
        ids = checked_ids(sample_ids, cache.samples)
        return cache._keep(self._guide, comparison.guide_sources, ids, ys).take_all()

    def _kept_batch(self, sample_ids: Tensor | None) -> KeptBatch | None:
        """A batch in the guide's cache, if all of it is there."""
        cache, comparison = self.guide_cache, self._comparison
        if cache is None:
            return None
        ids = checked_ids(sample_ids, cache.samples)
        if comparison is None:
            return None
        device = device_of(self.guide) or device_of(self.target) or torch.device("cpu")
        return cache._kept(self._guide, comparison.guide_sources, ids, device)

    def _check_mask(self, mask: Tensor | None) -> None:
        """Raise ValueError if padding cannot be left out of what the cache keeps."""
        if self.guide_cache is not None:
            check_mask(self.guide_cache.keep, mask)

    def _guide_captures(self, inputs: Any) -> Captures:
        """The guide's activations, without any of the target."""
        self._check_open()
        if self._recorders is None:
            raise RuntimeError("this Guidance is released, so it will not need the guide again")
        if self._comparison is None:
            raise RuntimeError(
                "fill() needs to know the guide's layers: give Guidance an example=, or list the "
                "pairs"
            )
        recorder = self._recorders[1]
        try:
            recorder.recording = True
            self._guide.run(inputs)
            return recorder.take(self._comparison.guide_sources)
        finally:
            recorder.clear()

    def _target_activations(self) -> tuple[Comparison, Captures]:
        """The captured layers of the target, of pairs that are resolved; the guide does not run."""
        target, _ = self._captured_networks()
        assert self._comparison is not None
        self._captured = False
        try:
            xs = target.take(self._comparison.target_sources)
            target.check_gradients(self._comparison.target_sources, xs)
        finally:
            target.clear()
        return self._comparison, xs

    def _captured_networks(self) -> tuple[Recorder, Recorder]:
        """The recorders of target and guide, if there is a capture."""
        self._check_open()
        assert self._recorders is not None
        if self._recorders[0].recording:
            raise RuntimeError("loss() belongs after the `with guidance.capture():` block")
        if not self._captured:
            raise RuntimeError(
                "loss() needs a capture: run the target inside `with guidance.capture():` first, "
                "once for each call of loss()"
            )
        return self._recorders

    def _attach(self) -> None:
        self._guide.freeze()
        target, guide = self._sources()
        repeats = self._comparison is None and self._pairing.repeats
        self._recorders = (
            Recorder(self.target, self._target_layers, target, "target", repeats=repeats),
            Recorder(self.guide, self._guide_layers, guide, "guide", repeats=repeats),
        )

    def _sources(self) -> tuple[list[Source], list[Source]]:
        """What to record of target and guide."""
        if self._comparison is None:
            return self._pairing.candidates()
        return self._comparison.target_sources, self._comparison.guide_sources

    def _observe(self, example: Any, guide_inputs: Any = None) -> tuple[Recorder, Recorder]:
        """What the networks' layers return for an example, as shapes."""
        target, guide = self._sources()
        transform = self._guide.transform if guide_inputs is None else None
        guide_inputs = example if guide_inputs is None else guide_inputs
        state = self._guide.state_dict()  # the transform may be a noise with a state
        try:
            return (
                observed(self.target, self._target_layers, target, "target", example),
                observed(self.guide, self._guide_layers, guide, "guide", guide_inputs, transform),
            )
        finally:
            self._guide.load_state_dict(state)

    def _compared_layers(
        self, example: Any, guide_inputs: Any
    ) -> tuple[Comparison, list[Tensor], list[Tensor]]:
        """What an example makes the networks compare, on the meta device."""
        target, guide = self._observe(example, guide_inputs)
        comparison = self._comparison or self._comparison_of(
            self._pairing.resolve(target.calls(), guide.calls())
        )
        xs, ys = target.take(comparison.target_sources), guide.take(comparison.guide_sources)
        comparison.check(xs, ys)
        return comparison, [x.tensor for x in xs], [y.tensor for y in ys]

    def _detach(self) -> None:
        for recorder in self._recorders or ():
            recorder.remove()
        self._recorders = None
        self._captured = False

    def _set_pairs(self, pairs: Sequence[Pair]) -> Comparison:
        if self.guide_cache is not None:
            check_pairs(self.guide_cache.keep, pairs)
        self.pairs = [pair.paths for pair in pairs]
        self._seen = None
        self._comparison = self._comparison_of(pairs)
        return self._comparison

    def _comparison_of(self, pairs: Sequence[Pair]) -> Comparison:
        distance = self._global or self.distance
        return Comparison(pairs, distance, self._target_layers, self._guide_layers)

    def _resolve(self, target: Recorder, guide: Recorder) -> Comparison:
        """Choose the pairs from what was recorded of all candidates."""
        comparison = self._set_pairs(self._pairing.resolve(target.calls(), guide.calls()))
        target.keep(comparison.target_sources)
        guide.keep(comparison.guide_sources)
        return comparison

    def _networks_state(self) -> dict[str, Any]:
        return {
            "rule": self._pairing.name,
            "pairs": None if self.pairs is None else list(self.pairs),
            "guide": self._guide.state_dict(),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        """ValueError unless a state of Guidance is of this guide and these `pairs`."""
        self._guide.check_state(state["guide"])
        if state["rule"] != self._pairing.name:
            raise ValueError(
                f"the state is of pairs={_rule(state['rule'])}, this Guidance was given "
                f"{_rule(self._pairing.name)}"
            )

    def _restore_pairs(self, saved: Sequence[tuple[str, str]] | None) -> None:
        """Compare the pairs of a saved state; without hooks if they are others."""
        if saved is None:
            return
        pairs = [(target, guide) for target, guide in saved]
        if pairs == self.pairs:
            return
        restored = self._pairing.restore(pairs, self.pairs)
        if restored is not None:
            self._set_pairs(restored)
            self._detach()


def _rule(name: str | None) -> str:
    return "a list" if name is None else repr(name)


def _check_separate(target: nn.Module, guide: nn.Module) -> None:
    """The guide is frozen, so nothing in it may belong to the target."""
    shared = {id(module) for module in target.modules()} & {id(m) for m in guide.modules()}
    shared |= {id(p) for p in target.parameters()} & {id(p) for p in guide.parameters()}
    trained = _memory(p for p in target.parameters() if p.requires_grad)
    if shared or trained & _memory(guide.parameters()):
        raise ValueError(
            "the guide shares modules or parameters with the target, or their memory, and would "
            "freeze them or be trained: keep it outside the target, or pass copy.deepcopy(guide)"
        )


def _memory(parameters: Iterable[Tensor]) -> set[tuple[torch.device, int]]:
    """Where the values of parameters are; some wrappers do not tell."""
    found = set()
    for tensor in parameters:
        if not nn.parameter.is_lazy(tensor) and not tensor.is_meta and tensor.numel():
            with contextlib.suppress(RuntimeError, NotImplementedError):
                found.add((tensor.device, tensor.data_ptr()))
    return {(device, address) for device, address in found if address}
