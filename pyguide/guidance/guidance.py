"""Guidance: a training loss that pulls a target's layers towards a guide's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyguide.capture.paths import named_layers
from pyguide.capture.recorder import Recorder, Source, observed
from pyguide.distances import Distance, get_distance
from pyguide.guidance.comparison import Captures, Comparison
from pyguide.guidance.degeneracy import DegeneracyWarner
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.logs import LossRecord, grad_norm
from pyguide.guidance.pairing import Pair, make_pairing
from pyguide.guidance.plan import Plan, make_plan
from pyguide.guidance.schedules import Schedule, as_schedule, weight_at, whole_number
from pyguide.guidance.timing import StepClock

__all__ = ["Guidance"]


class Guidance:
    """Adds ``weight * sum of distances(target layer, guide layer)`` to a training loss.

    With the default distance, 1 - linear CKA, this is the guidance of Subramaniam et al.
    2025 (arXiv 2410.20035). The guide is frozen: it runs under no_grad on the target's
    minibatch, and its parameters and buffers never change. It may be trained or randomly
    initialised. Making Guidance puts it in eval mode, sets its parameters'
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
        An object from :mod:`pyguide.distances`, or the name of one with its defaults: "cka",
        "debiased_cka", "rbf_cka", "debiased_rbf_cka", "rsa", "ridge", "procrustes", "bures".
    weight : float or callable
        Factor of the sum, finite: a number, or a function of the number of optimizer steps
        taken, such as those in :mod:`pyguide.guidance.schedules`; not asked after release.
        While it is 0 the guide does not run.
    release_at : int, optional
        Number of optimizer steps after which the target trains alone. 0: never guided, and
        the guide is left as it is.
    example : Tensor, tuple or dict, optional
        An input for both networks with which rules and globs are resolved now. Without it,
        the first :meth:`loss` does so; until then every candidate layer is captured.
    align_only : int
        Number of optimizer steps during which :meth:`total_loss` leaves the task loss out.
    guide_mode : "eval", "batch_stats" or "calibrated"
        Which statistics the guide's BatchNorm layers use: their own; the batch's, like a
        network in training; or the mean over the guide's first `calibration_batches`
        forward passes (until then, the batch's). An untrained BatchNorm's own statistics
        are 0 and 1, so with "eval" it normalises nothing. Everything else in the guide,
        dropout too, is in eval mode. Each process of a distributed run takes its own.
    guide_transform : callable, optional
        What the guide sees, as a function of what the target saw: another resolution, or
        noise (:func:`pyguide.guidance.gaussian_noise`). Its state is saved if it has
        ``state_dict()`` and ``load_state_dict()``.
    calibration_batches : int
        For "calibrated".
    timed : bool
        Measure what :meth:`times` returns. Not inside compiled code.

    Raises
    ------
    ValueError
        For an unknown layer (with the nearest matches), distance or mode, no pairs, a
        weight that is not finite, a `release_at`, `align_only` or `calibration_batches`
        that is not a number of steps, a phase that ends after release, or a guide that
        shares parameters with the target.

    Notes
    -----
    The first axis of a captured output is the batch. torch's own recurrent, attention and
    Transformer layers made with ``batch_first=False`` are transposed, and what is inside
    these Transformers. :class:`pyguide.Pair` says what stands for a tuple, a dict or a
    PackedSequence.

    The target may be compiled, or the whole step up to the loss, also with
    ``fullgraph=True``: give an `example` then, unless `pairs` lists paths, since hooks cannot
    be removed there. With ``torch._dynamo.config.trace_autograd_ops = True`` the one graph
    may have the backward too, if the function returns ``loss.detach()``. Graph breaks are
    :func:`pyguide.guidance.gaussian_noise`, the batches from which "calibrated" takes its
    statistics, a `mask` of per-token pairs, and `grad_norms`. Each phase is compiled on its
    own. Call :meth:`step` outside.

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
    ...     loss = guidance.total_loss(nn.functional.cross_entropy(logits, y), x)
    ...     loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     guidance.step()
    >>> guidance.pairs
    [('0', '0')]
    >>> for name in sorted(guidance.log_dict()):
    ...     print(name)
    guidance/cka/0~0
    guidance/loss
    guidance/step
    guidance/task_loss
    guidance/weight
    """

    def __init__(
        self,
        target: nn.Module,
        guide: nn.Module,
        pairs: str | Iterable[Pair | tuple[str, str]] = "even",
        distance: str | Distance = "cka",
        weight: float | Schedule = 1.0,
        release_at: int | None = None,
        *,
        example: Any = None,
        align_only: int = 0,
        guide_mode: str = "eval",
        guide_transform: Callable[[Any], Any] | None = None,
        calibration_batches: int = 8,
        timed: bool = False,
    ) -> None:
        _check_separate(target, guide)
        self.target = target
        self.guide = guide
        self._guide = FrozenGuide(guide, guide_mode, guide_transform, calibration_batches)
        self.distance = get_distance(distance)
        self.release_at = None if release_at is None else whole_number("release_at", release_at)
        self.align_only = whole_number("align_only", align_only)
        if self.release_at is not None and self.align_only > self.release_at:
            raise ValueError(
                f"align_only must not be after release_at={release_at}, got {align_only}: "
                "guidance alone would train the target, and there is none after release"
            )
        self._schedule = as_schedule(weight)
        #: Optimizer steps counted by :meth:`step`.
        self.steps = 0
        self._aligning = self.align_only > 0
        self._weight = weight_at(self._schedule, 0)
        #: Whether guidance is over.
        self.released = False
        #: The (target path, guide path) pairs; None while rules and globs are not resolved.
        self.pairs: list[tuple[str, str]] | None = None
        self._target_layers = named_layers(target)
        self._guide_layers = named_layers(guide)
        self._record: LossRecord | None = None
        self._clock = StepClock() if timed else None
        self._degeneracy = DegeneracyWarner()
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
        # A new one each time: Dynamo enters only what it saw made.
        return _Window(self)

    def loss(self, x: Any, guide_inputs: Any = None, *, mask: Tensor | None = None) -> Tensor:
        """The guidance term for the captured forward pass, a scalar.

        Runs the guide, and uses up the capture.

        Parameters
        ----------
        x : Tensor, tuple or dict
            What the target saw: one argument, positional or keyword arguments.
        guide_inputs : Tensor, tuple or dict, optional
            What the guide sees instead of `x`; `guide_transform` is not applied to it.
        mask : Tensor, optional
            (n, T) bool, True where position t of the sample is valid, for layers that are
            (n, T, ...); others ignore it (but a map of T channels is not told from a sequence:
            flatten it with `extract`). A per-token pair compares each position over its
            valid samples, and leaves out positions with fewer than the distance needs (2,
            debiased 4). A pair of whole sequences has the mean of the valid samples in place
            of padding: there the sample is an average one and adds nothing. Padded values
            change nothing and get no gradient. Biased CKA of few samples is near 1: where few
            are valid use "debiased_cka". On a GPU, per-token pairs wait for the mask.

        Returns
        -------
        Tensor
            ``weight * sum of distances``; zero, without a graph, after release and while
            the weight is 0.

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
        if self._idle:
            loss = torch.zeros((), device=self._device())
            self._record = None if self.released else LossRecord(0.0, loss.clone())
            return loss
        comparison, xs, ys = self._activations(x, guide_inputs)
        with self._timed("distances"):
            distances = self._distances(comparison, xs, ys, mask)
        loss = self.weight * distances.sum()
        # A copy, for `loss /= 4` is in place.
        self._record = LossRecord(self.weight, loss.detach().clone(), distances.detach())
        return loss

    def total_loss(
        self,
        task_loss: Tensor,
        x: Any,
        guide_inputs: Any = None,
        *,
        mask: Tensor | None = None,
        grad_norms: bool = False,
    ) -> Tensor:
        """The loss to train with: `task_loss` plus :meth:`loss`, logged.

        During the first `align_only` steps it is :meth:`loss` alone. Parameters after the
        last paired layer, such as the output layer's, then get no gradient (None), and
        optimizers leave them as they are: no weight decay, no change of Adam's averages.
        Where torch.distributed is initialised, `task_loss` is kept with a factor of 0,
        because DistributedDataParallel waits for the gradient of every parameter: it is 0
        there, so weight decay acts, and Adam counts the step, which changes the size of its
        first updates after the phase. To avoid both, start these parameters' optimizer then.

        Parameters
        ----------
        task_loss : Tensor
            The task's loss, a scalar.
        x, guide_inputs, mask
            As for :meth:`loss`.
        grad_norms : bool
            Log the gradient norms of the task and the guidance term over all parameters
            of the target: of this process alone, and of losses that no GradScaler has scaled.
            Costs two more backward passes, so ask for it in some of the steps. Not for
            compiled targets, whose backward can run only once.

        Returns
        -------
        Tensor
            A scalar. After release, `task_loss` itself.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As :meth:`loss`.
        """
        guidance = self.loss(x, guide_inputs, mask=mask)
        record = self._record or LossRecord(0.0, guidance)
        record.task = task_loss.detach().clone()
        if grad_norms:
            parameters = [p for p in self.target.parameters() if p.requires_grad]
            record.task_grad_norm = grad_norm(task_loss, parameters)
            record.guidance_grad_norm = grad_norm(guidance, parameters)
        self._record = record
        if self.aligning:
            return self._without_task(guidance, task_loss)
        return task_loss if self._idle else task_loss + guidance

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
        """Count one optimizer step; releases the target at `release_at`.

        Under a GradScaler, count only steps that it did not skip: those after whose
        ``scaler.update()`` the scale is not smaller than before. A skipped step that is
        counted moves schedules and release forward by one.
        """
        if self._clock is not None:
            self._clock.end_step(self._device())
        self._degeneracy.check_pending()
        if self._record is not None and self._record.step is None:
            self._record.step = self.steps
        self._count(self.steps + 1)
        if self._is_over(self.steps):
            self.release()

    @property
    def weight(self) -> float:
        """Factor of the sum of distances in this step; 0 after release."""
        return 0.0 if self.released else self._weight

    @property
    def aligning(self) -> bool:
        """Whether :meth:`total_loss` leaves the task loss out in this step."""
        return self._aligning and not self.released

    @property
    def last(self) -> Tensor | None:
        """(P,) detached distances of the last :meth:`loss`, in the order of `pairs`."""
        return None if self._record is None else self._record.distances

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

    def log_dict(self) -> dict[str, Tensor | float | int]:
        """The parts of the last loss by name, without waiting for the device.

        Keys are ``guidance/loss`` (the weighted term), ``guidance/weight``,
        ``guidance/step`` and ``guidance/<distance>/<target path>~<guide path>``, which ends
        in ``#2`` for the second pair of the same two layers; after
        :meth:`total_loss` also ``guidance/task_loss`` and, where it was asked for them,
        ``guidance/grad_norm`` and ``guidance/task_grad_norm``. Weight and step are numbers,
        the rest are detached scalars on their device.

        Empty before the first loss, and after a :meth:`loss` that follows release.
        """
        if self._record is None:
            return {}
        return self._record.as_dict(self.steps, self.distance.name, self.pairs or ())

    def times(self) -> dict[str, float]:
        """The time that guidance took of the last step; needs ``timed=True``.

        A step lasts from the first :meth:`capture` to :meth:`step`. On CUDA, waits for the
        device to finish it.

        Returns
        -------
        dict of str to float
            ``guidance/seconds/<part>`` for the parts "guide" (its forward pass),
            "distances", "backward" (of the distances) and "step" (the whole), and
            ``guidance/time_share``, the first three's share of the step. Empty before the
            first :meth:`step`.

        Raises
        ------
        RuntimeError
            Without ``timed=True``.
        """
        if self._clock is None:
            raise RuntimeError("times() needs a Guidance made with timed=True")
        seconds = self._clock.seconds()
        if not seconds:
            return {}
        step = seconds.pop("step")
        times = {f"guidance/seconds/{part}": value for part, value in seconds.items()}
        share = sum(seconds.values()) / step
        return times | {"guidance/seconds/step": step, "guidance/time_share": share}

    def write_to(self, writer: Any, step: int | None = None) -> None:
        """Write :meth:`log_dict`, and :meth:`times` if timed, to TensorBoard.

        Reads the values, so it waits for the device.

        Parameters
        ----------
        writer : torch.utils.tensorboard.SummaryWriter
            Or anything else with its ``add_scalar(tag, value, step)``.
        step : int, optional
            The step to write them under; the one of the last loss by default.
        """
        values = self.log_dict()
        if self._clock is not None:
            values |= self.times()
        last = int(values.pop("guidance/step", self.steps))
        for name, value in values.items():
            writer.add_scalar(name, float(value), last if step is None else step)

    def state_dict(self) -> dict[str, Any]:
        """The step, whether released, the pairs and the state of the guide.

        The last is the mode, the number of calls of a
        :func:`pyguide.guidance.gaussian_noise`, and in mode "calibrated" a mean and a
        variance for each channel of a BatchNorm layer: the only tensors.
        """
        pairs = None if self.pairs is None else list(self.pairs)
        return {
            "step": self.steps,
            "released": self.released,
            "rule": self._pairing.name,
            "pairs": pairs,
            "guide": self._guide.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; attaches or removes hooks as it says.

        A compiled target that was called since release needs torch.compiler.reset() after.

        The arguments of this object count: give it the schedule, `release_at` and
        `align_only` of the run that is resumed.

        Raises
        ------
        ValueError
            If this object was given another rule, other explicit pairs or another
            `guide_mode`, or a layer does not exist.
        """
        if self._closed:
            raise RuntimeError("this Guidance is closed")
        steps, released, pairs = int(state["step"]), bool(state["released"]), state["pairs"]
        released = released or self._is_over(steps)
        guide = state["guide"]
        self._guide.check_state(guide)
        if state["rule"] != self._pairing.name:
            raise ValueError(
                f"the state is of pairs={_rule(state['rule'])}, this Guidance was given "
                f"{_rule(self._pairing.name)}"
            )
        if not released:
            weight_at(self._schedule, steps)
        if pairs is not None:
            pairs = [(target, guide) for target, guide in pairs]
            if pairs != self.pairs:
                restored = self._pairing.restore(pairs, self.pairs)
                if restored is not None:
                    self._set_pairs(restored)
                    self._detach()
        self.released = released
        self._count(steps)
        self._guide.load_state_dict(guide)
        self._record = None
        if released:
            self._detach()
        elif self._recorders is None:
            self._attach()

    @property
    def _idle(self) -> bool:
        """Whether this step needs neither the guide nor a capture."""
        return self.released or (self._weight == 0 and not self._closed)

    def _count(self, steps: int) -> None:
        # Ready before the step, whose compiled code then reads no number that changes in
        # each step, and need not be compiled again for it.
        if not (self.released or self._is_over(steps)):
            self._weight = weight_at(self._schedule, steps)
        self._aligning = steps < self.align_only
        self.steps = steps

    def _is_over(self, steps: int) -> bool:
        return self.release_at is not None and steps >= self.release_at

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self._clock is None else self._clock.span(part, self._device())

    def _activations(self, x: Any, guide_inputs: Any) -> tuple[Comparison, Captures, Captures]:
        """The captured layers of the target, and the guide's from running it."""
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
            with self._timed("guide"):
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
        return comparison, xs, ys

    def _distances(
        self, comparison: Comparison, xs: Captures, ys: Captures, mask: Tensor | None
    ) -> Tensor:
        """(P,) distances of the pairs."""
        if self._clock is not None:
            tensors = self._clock.time_backward([x.tensor for x in xs])
            xs = [x._replace(tensor=tensor) for x, tensor in zip(xs, tensors, strict=True)]
        distances, degenerate = comparison(xs, ys, mask)
        if self._clock is not None:
            self._clock.start_backward_at(distances)
        if degenerate is not None:
            self._degeneracy.update(degenerate, comparison.paths)
        return distances

    def _without_task(self, guidance: Tensor, task_loss: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return guidance
        if guidance.requires_grad and not _is_distributed():
            return guidance
        # Also where the weight is 0: backward needs a graph.
        return guidance + 0.0 * task_loss

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
        if guidance._clock is not None:
            guidance._clock.start_step(guidance._device())
        if guidance._recorders is None:
            return
        recorder = guidance._recorders[0]
        if recorder.recording:
            raise RuntimeError("guidance.capture() is already open")
        recorder.clear()
        guidance._captured = False
        recorder.recording = not guidance._idle

    def __exit__(self, kind: object, *_: object) -> None:
        guidance = self._guidance
        if guidance._recorders is None:
            return
        recorder = guidance._recorders[0]
        guidance._captured = recorder.recording and kind is None
        recorder.recording = False
        if kind is not None:
            recorder.clear()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rule(name: str | None) -> str:
    return "a list" if name is None else repr(name)


def _check_separate(target: nn.Module, guide: nn.Module) -> None:
    """The guide is frozen, so nothing in it may belong to the target."""
    shared = {id(module) for module in target.modules()} & {id(m) for m in guide.modules()}
    shared |= {id(p) for p in target.parameters()} & {id(p) for p in guide.parameters()}
    if shared:
        raise ValueError(
            "the guide shares modules or parameters with the target and would freeze them: keep "
            "it outside the target, or pass copy.deepcopy(guide)"
        )
