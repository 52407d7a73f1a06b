"""Guidance: a training loss that pulls a target's layers towards a guide's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyguide.distances import Distance, get_distance
from pyguide.guidance.capture import Recorder, Source, observed
from pyguide.guidance.comparison import Comparison
from pyguide.guidance.degeneracy import DegeneracyWarner
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.pairing import Pair, make_pairing
from pyguide.guidance.paths import named_layers
from pyguide.guidance.plan import Plan, make_plan

__all__ = ["Guidance"]


class Guidance:
    """Adds ``weight * sum of distances(target layer, guide layer)`` to a training loss.

    With the default distance, 1 - linear CKA, this is the guidance of Subramaniam et al.
    2025 (arXiv 2410.20035). The guide is frozen: it runs in eval mode under no_grad on the
    target's minibatch, and its parameters and buffers never change. It may be trained or
    randomly initialised. Making Guidance puts it in eval mode, sets its parameters'
    requires_grad to False and drops their gradients; so it stays after release.

    Parameters
    ----------
    target : nn.Module
        The network in training. Its state_dict is not touched. If it is compiled, make
        Guidance before its first call; if it or a model of the same class was called
        compiled earlier in this process, call torch.compiler.reset() after making Guidance.
    guide : nn.Module
        The network to resemble, on the same device. It must not share parameters with
        the target or be a part of it. If DDP wraps a parent of both, make Guidance first.
    pairs : str, or sequence of (str, str) or Pair
        Pairs (target path, guide path) of dotted module paths as :func:`pyguide.list_layers`
        prints them, or globs of them, or :class:`pyguide.Pair` objects with options; pairs on
        the same layer add up. Or a rule:

        - "even" spreads min(t, g) pairs over the candidate layers of both networks in
          execution order: Linear, convolutions, recurrent layers, attention and adaptive
          pooling that are called once, without the network's last one (the logits). Norm
          layers are left out: they restate the layer before them.
        - "first:k" and "last:k" are the first or last k pairs of "even". Where the guide has
          no more candidates than the target, these are its first or last k layers, as in
          the paper's ablation.
        - "paper" is the mapping of the paper's code: guide layer i of l goes to target layer
          ``min(round(i (t - 1) / (l - 1)), t - 1)`` of t, halves to the even number, and the
          last guide layer on a target layer wins. Candidates are every call of Conv2d, Linear,
          AdaptiveAvgPool2d, LSTM, RNN, TransformerDecoderLayer, LayerNorm and
          MultiheadAttention (not of subclasses), without the last one. "paper-sum" keeps
          every guide layer, as the paper's text has it.
    distance : str or Distance
        "cka", "debiased_cka" or an object from :mod:`pyguide.distances`.
    weight : float
        Factor of the sum, finite.
    release_at : int, optional
        Number of optimizer steps after which the target trains alone. 0: never guided, and
        the guide is left as it is.
    example : Tensor, tuple or dict, optional
        An input for both networks with which rules and globs are resolved now. Without it,
        the first :meth:`loss` does so; until then every candidate layer is captured.

    Raises
    ------
    ValueError
        For an unknown layer (with the nearest matches) or distance, no pairs, a weight that
        is not finite, a `release_at` that is not a number of steps, or a guide that shares
        parameters with the target.

    Notes
    -----
    The first axis of a captured output is the batch. torch's own recurrent, attention and
    Transformer layers made with ``batch_first=False`` are transposed. :class:`pyguide.Pair`
    says what stands for a tuple, a dict or a PackedSequence.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from pyguide.guidance import Guidance
    >>> target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    >>> guidance = Guidance(target, guide, release_at=100)
    >>> optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    >>> for _ in range(3):
    ...     x, y = torch.randn(64, 8), torch.randint(3, (64,))
    ...     with guidance.capture():
    ...         logits = target(x)
    ...     loss = nn.functional.cross_entropy(logits, y) + guidance.loss(x)
    ...     loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     guidance.step()
    >>> guidance.pairs
    [('0', '0')]
    >>> sorted(guidance.log_dict())
    ['guidance/cka/0~0', 'guidance/loss']
    """

    def __init__(
        self,
        target: nn.Module,
        guide: nn.Module,
        pairs: str | Iterable[Pair | tuple[str, str]] = "even",
        distance: str | Distance = "cka",
        weight: float = 1.0,
        release_at: int | None = None,
        *,
        example: Any = None,
        guide_mode: str = "eval",
        guide_transform: Callable[[Any], Any] | None = None,
        calibration_batches: int = 8,
    ) -> None:
        if release_at is not None and not (isinstance(release_at, Integral) and release_at >= 0):
            raise ValueError(f"release_at must be a whole number of steps >= 0, got {release_at!r}")
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        _check_separate(target, guide)
        self.target = target
        self.guide = guide
        self._guide = FrozenGuide(guide, guide_mode, guide_transform, calibration_batches)
        self.distance = get_distance(distance)
        self.weight = float(weight)
        self.release_at = release_at
        #: Optimizer steps counted by :meth:`step`.
        self.steps = 0
        #: Whether guidance is over.
        self.released = False
        #: The (target path, guide path) pairs; None while rules and globs are not resolved.
        self.pairs: list[tuple[str, str]] | None = None
        #: (P,) detached distances of the last :meth:`loss`, in the order of `pairs`.
        self.last: Tensor | None = None

        self._target_layers = named_layers(target)
        self._guide_layers = named_layers(guide)
        self._last_loss: Tensor | None = None
        self._degeneracy = DegeneracyWarner()
        self._window = _Window(self)
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
        if release_at == 0:
            self.released = True
        else:
            self._attach()

    def capture(self) -> _Window:
        """Context manager around the one forward pass of the target in a training step.

        Layers are recorded only while it is open: close it before :meth:`loss` and before
        backward, where activation checkpointing calls layers again. A window without
        :meth:`loss` keeps its activations, and so their graph, until the next one. After
        release it does nothing.
        """
        return self._window

    def loss(self, x: Any, guide_inputs: Any = None, *, mask: Tensor | None = None) -> Tensor:
        """The guidance term for the captured forward pass, a scalar.

        Runs the guide, and uses up the capture.

        Parameters
        ----------
        x : Tensor, tuple or dict
            What the target saw: one argument, positional or keyword arguments.
        guide_inputs : Tensor, tuple or dict, optional
            What the guide sees instead of `x`.
        mask : Tensor, optional
            (n, T) bool, True where position t of the sample is valid, for layers that are
            (n, T, ...); others ignore it. A per-token pair compares each position over its
            valid samples, and leaves out positions with fewer than the distance needs (2,
            debiased 4). A pair of whole sequences has the mean of the valid samples in place
            of padding: there the sample is an average one and adds nothing. Padded values
            change nothing and get no gradient. On a GPU, per-token pairs wait for the mask.

        Returns
        -------
        Tensor
            ``weight * sum of distances``; zero, without a graph, after release.

        Raises
        ------
        RuntimeError
            Without a capture; if a layer recorded nothing, two calls where the pair names
            none, or an output that was modified in place since; if grad mode is on but a
            captured layer of a trainable target has no gradient (a checkpoint with
            ``use_reentrant=True``, no_grad, frozen layers).
        TypeError
            If it is not clear which tensor stands for a layer's output; a mask that is not
            bool (n, T).
        ValueError
            If paired layers differ in their number of samples or, per token, of positions;
            globs that do not match equally many layers; a mask that fits no layer.
        """
        if self.released:
            return torch.zeros((), device=self._device())
        if self._closed or self._recorders is None:
            raise RuntimeError("this Guidance is closed")
        target, guide = self._recorders
        if target.recording:
            raise RuntimeError("loss() belongs after the `with guidance.capture():` block")
        if not self._captured:
            raise RuntimeError(
                "loss() needs a capture: run the target inside `with guidance.capture():` first, "
                "once for each call of loss()"
            )
        self._captured = False
        try:
            guide.recording = True
            self._guide.run(x, guide_inputs)
            guide.recording = False
            comparison = self._comparison or self._resolve(target, guide)
            xs = target.take(comparison.target_sources)
            ys = guide.take(comparison.guide_sources)
            target.check_gradients(comparison.target_sources, xs)
        finally:
            target.clear()
            guide.clear()
        if self._seen is None and not torch.compiler.is_compiling():
            self._seen = tuple(
                [torch.empty_like(captured.tensor, device="meta") for captured in side]
                for side in (xs, ys)
            )
        distances, degenerate = comparison(xs, ys, mask)
        if degenerate is not None:
            self._degeneracy.update(degenerate, comparison.paths)
        loss = self.weight * distances.sum()
        self.last = distances.detach()
        self._last_loss = loss.detach()
        return loss

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
        target, guide = self._observe(example, guide_inputs)
        comparison = self._comparison or self._comparison_of(
            self._pairing.resolve(target.calls(), guide.calls())
        )
        xs, ys = target.take(comparison.target_sources), guide.take(comparison.guide_sources)
        comparison.check(xs, ys)
        return make_plan(comparison, [x.tensor for x in xs], [y.tensor for y in ys])

    def step(self) -> None:
        """Count one optimizer step; releases the target at `release_at`."""
        self.steps += 1
        if self.release_at is not None and self.steps >= self.release_at:
            self.release()

    def release(self) -> None:
        """End guidance: no hooks, no forward pass of the guide, a zero :meth:`loss`."""
        self.released = True
        self._detach()

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

    def log_dict(self) -> dict[str, Tensor]:
        """The last loss and its distances by name: detached scalars on their device.

        Keys are ``guidance/loss`` and ``guidance/<distance>/<target path>~<guide path>``.
        Empty before the first :meth:`loss` and after release.
        """
        if self.last is None or self._last_loss is None or self.pairs is None:
            return {}
        logs = {"guidance/loss": self._last_loss}
        for (target, guide), value in zip(self.pairs, self.last.unbind(), strict=True):
            logs[f"guidance/{self.distance.name}/{target}~{guide}"] = value
        return logs

    def state_dict(self) -> dict[str, Any]:
        """The step, whether released, and the pairs; no tensors."""
        pairs = None if self.pairs is None else list(self.pairs)
        return {"step": self.steps, "released": self.released, "pairs": pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; attaches or removes hooks as it says.

        A compiled target that was called since release needs torch.compiler.reset() after.

        Raises
        ------
        ValueError
            If this object was given other explicit pairs, or a layer does not exist.
        """
        if self._closed:
            raise RuntimeError("this Guidance is closed")
        steps, released, pairs = int(state["step"]), bool(state["released"]), state["pairs"]
        if pairs is not None:
            pairs = [(target, guide) for target, guide in pairs]
            if pairs != self.pairs:
                restored = self._pairing.restore(pairs, self.pairs)
                if restored is not None:
                    self._set_pairs(restored)
                    self._detach()
        self.steps = steps
        self.released = released or (self.release_at is not None and steps >= self.release_at)
        if self.released:
            self._detach()
        elif self._recorders is None:
            self._attach()

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

    def _detach(self) -> None:
        for recorder in self._recorders or ():
            recorder.remove()
        self._recorders = None
        self._captured = False
        self.last = self._last_loss = None

    def _set_pairs(self, pairs: Sequence[Pair]) -> Comparison:
        self.pairs = [pair.paths for pair in pairs]
        self._seen = None
        self._comparison = self._comparison_of(pairs)
        return self._comparison

    def _comparison_of(self, pairs: Sequence[Pair]) -> Comparison:
        return Comparison(pairs, self.distance, self._target_layers, self._guide_layers)

    def _resolve(self, target: Recorder, guide: Recorder) -> Comparison:
        """Choose the pairs from what was recorded of all candidates."""
        comparison = self._set_pairs(self._pairing.resolve(target.calls(), guide.calls()))
        target.keep(comparison.target_sources)
        guide.keep(comparison.guide_sources)
        return comparison

    def _device(self) -> torch.device | None:
        return next((p.device for p in self.target.parameters()), None)


class _Window:
    """The context of :meth:`Guidance.capture`."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance

    def __enter__(self) -> None:
        guidance = self._guidance
        if guidance._closed:
            raise RuntimeError("this Guidance is closed")
        if guidance._recorders is None:
            return
        recorder = guidance._recorders[0]
        if recorder.recording:
            raise RuntimeError("guidance.capture() is already open")
        recorder.clear()
        guidance._captured = False
        recorder.recording = True

    def __exit__(self, kind: object, *_: object) -> None:
        guidance = self._guidance
        if guidance._recorders is None:
            return
        recorder = guidance._recorders[0]
        recorder.recording = False
        guidance._captured = kind is None
        if kind is not None:
            recorder.clear()


def _check_separate(target: nn.Module, guide: nn.Module) -> None:
    """The guide is frozen, so nothing in it may belong to the target."""
    shared = {id(module) for module in target.modules()} & {id(m) for m in guide.modules()}
    shared |= {id(p) for p in target.parameters()} & {id(p) for p in guide.parameters()}
    if shared:
        raise ValueError(
            "the guide shares modules or parameters with the target and would freeze them: keep "
            "it outside the target, or pass copy.deepcopy(guide)"
        )
