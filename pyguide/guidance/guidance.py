"""Guidance: a training loss that pulls a target's layers towards a guide's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.capture.sharding import sharded_modules
from pyguide.distances import Distance
from pyguide.guidance.all_processes import (
    ProcessGroup,
    digest_of_guide,
    is_distributed,
    telling_others,
    warn_of_own_batches,
)
from pyguide.guidance.degeneracy import DegeneracyWarner
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.guide_cache import GuideCache
from pyguide.guidance.logs import LossRecord, StepLogs, grad_norm
from pyguide.guidance.networks import GuidedNetworks
from pyguide.guidance.pairing import Pair
from pyguide.guidance.phases import Phases
from pyguide.guidance.schedules import Schedule
from pyguide.guidance.timing import device_of

__all__ = ["Guidance"]


class Guidance(GuidedNetworks, StepLogs):
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
        The network to resemble, on the same device. It must not share parameters, or the
        memory of trained ones, with the target or be a part of it. If DDP wraps a parent of
        both, make Guidance first.
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
    guide_cache : GuideCache, optional
        Keeps what the guide gives for each sample, see :class:`pyguide.guidance.GuideCache`.
        Needs `guide_mode` "eval", and the same input of the guide for a sample in every epoch.
    timed : bool
        Measure what :meth:`times` returns. Not inside compiled code.
    process_group : ProcessGroup or "local", optional
        Under torch.distributed, whose batches are compared as one: by default those of all
        processes, see :class:`pyguide.distributed.GlobalBatch`. Every process then makes this
        object and calls :meth:`loss` in the same steps. "local" compares each process's own
        batch, which sends nothing and trains something else: the mean of small batches' CKAs.

    Raises
    ------
    ValueError
        For an unknown layer (with the nearest matches), distance or mode, no pairs, a
        weight that is not finite, a `release_at`, `align_only` or `calibration_batches`
        that is not a number of steps, a phase that ends after release, a set of pairs, or a
        guide that shares parameters with the target.

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
    statistics, a `mask` of per-token pairs, a `guide_cache`, and `grad_norms`. Each phase is
    compiled on its own. Call :meth:`step` outside.

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
        guide_cache: GuideCache | None = None,
        timed: bool = False,
        process_group: ProcessGroup | str | None = None,
    ) -> None:
        self._phases = Phases(weight, release_at, align_only)
        frozen = FrozenGuide(guide, guide_mode, guide_transform, calibration_batches)
        GuidedNetworks.__init__(
            self, target, frozen, pairs, distance, example, process_group, guide_cache
        )
        self._check_processes = process_group is None and not is_distributed()
        self._compare_processes_once()
        StepLogs.__init__(self, target, timed)
        self._degeneracy = DegeneracyWarner()
        if not self.released:
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

    def loss(
        self,
        x: Any,
        guide_inputs: Any = None,
        *,
        mask: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
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
            debiased 4). A pair of whole sequences has the distance's origin in place of
            padding, where a feature counts nothing: the mean of the valid samples, for ridge of
            those that fit, for RSA of cosines zero. Padded values change nothing and get no
            gradient. Biased CKA of few samples is near 1: where few are valid use
            "debiased_cka". On a GPU, per-token pairs wait for the mask.
        sample_ids : Tensor, optional
            For a `guide_cache`: (n,) int64, each sample's position in the data set, best on the
            CPU. A sample may be in the batch twice. The guide does not run, and `x` and
            `guide_inputs` are not used, if all samples were seen before.

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
            ``use_reentrant=True``, no_grad, frozen layers); if processes compare different
            layers, or with the first comparison another guide, weight or phases.
        TypeError
            If it is not clear which tensor stands for a layer's output; a mask that is not
            bool (n, T); sample ids that are not int64 (n,).
        ValueError
            If paired layers differ in their number of samples or, per token, of positions; too
            few samples for the distance;
            globs that do not match equally many layers; a mask that fits no layer; with a
            `guide_cache`, no sample ids, or some out of range.
        """
        if self._idle:
            loss = torch.zeros((), device=device_of(self.target))
            self._record = None if self.released else LossRecord(0.0, loss.clone())
            return loss
        if self._global is None:
            distances = self._distances(x, guide_inputs, mask, sample_ids)
        else:
            with telling_others(self._global):
                distances = self._distances(x, guide_inputs, mask, sample_ids)
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
        sample_ids: Tensor | None = None,
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
        x, guide_inputs, mask, sample_ids
            As for :meth:`loss`.
        grad_norms : bool
            Log the gradient norms of the task and the guidance term over all parameters
            of the target: of this process alone, and of losses that no GradScaler has scaled.
            Costs two more backward passes, so ask for it in some of the steps, in every process.
            Not for compiled targets, whose backward can run only once, nor with `fully_shard`.

        Returns
        -------
        Tensor
            A scalar. After release, `task_loss` itself.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As :meth:`loss`; ValueError for `grad_norms` of a sharded target.
        """
        if grad_norms and sharded_modules(self.target):
            raise ValueError(
                "grad_norms cannot be had of a target that fully_shard has sharded: its parameters "
                "are in no graph; take the norms of a copy that is not sharded"
            )
        if self._global is not None:
            self._global.context = " with grad_norms" if grad_norms else ""
        guidance = self.loss(x, guide_inputs, mask=mask, sample_ids=sample_ids)
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

    def step(self) -> None:
        """Count one optimizer step; releases the target at `release_at`.

        Under a GradScaler, count only steps that it did not skip: those after whose
        ``scaler.update()`` the scale is not smaller than before. A skipped step that is
        counted moves schedules and release forward by one.
        """
        self._end_step()
        self._degeneracy.check_pending()
        self._phases.go_to(self.steps + 1)
        if self._phases.is_over(self.steps):
            self.release()

    def release(self) -> None:
        """End guidance: no hooks, no forward pass of the guide, a zero :meth:`loss`."""
        self._phases.released = True
        self._detach()

    @property
    def steps(self) -> int:
        """Optimizer steps counted by :meth:`step`."""
        return self._phases.steps

    @property
    def release_at(self) -> int | None:
        """Number of optimizer steps after which the target trains alone."""
        return self._phases.release_at

    @property
    def align_only(self) -> int:
        """Number of optimizer steps during which :meth:`total_loss` has no task loss."""
        return self._phases.align_only

    @property
    def released(self) -> bool:
        """Whether guidance is over."""
        return self._phases.released

    @property
    def weight(self) -> float:
        """Factor of the sum of distances in this step; 0 after release."""
        return self._phases.weight

    @property
    def aligning(self) -> bool:
        """Whether :meth:`total_loss` leaves the task loss out in this step."""
        return self._phases.aligning

    def state_dict(self) -> dict[str, Any]:
        """The step, whether released, the pairs and the state of the guide.

        The last is the mode, the number of calls of a
        :func:`pyguide.guidance.gaussian_noise`, and in mode "calibrated" a mean and a
        variance for each channel of a BatchNorm layer: the only tensors.
        """
        return {"step": self.steps, "released": self.released, **self._networks_state()}

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
        self._check_open()
        steps = int(state["step"])
        released = bool(state["released"]) or self._phases.is_over(steps)
        self._check_state(state)
        if not released:
            self._phases.check(steps)
        self._restore_pairs(state["pairs"])
        self._phases.released = released
        self._phases.go_to(steps)
        self._guide.load_state_dict(state["guide"])
        self._record = None
        self._compare_processes_once()
        if released:
            self._detach()
        elif self._recorders is None:
            self._attach()

    @property
    def _idle(self) -> bool:
        """Whether this step needs neither the guide nor a capture."""
        return self.released or (self.weight == 0 and not self._closed)

    def _compare_processes_once(self) -> None:
        """Have the next comparison raise if processes have other guides, pairs or phases."""
        if self._global is not None:
            self._global.constant_context = lambda: (
                f" with guide {digest_of_guide(self._guide)}, weight {self.weight:g} in step "
                f"{self.steps}, release_at {self.release_at}, align_only {self.align_only}, pairs "
                f"{self.pairs}"
            )

    def _warn_of_own_batches(self) -> None:
        if not self._check_processes or torch.compiler.is_compiling() or not is_distributed():
            return
        self._check_processes = False
        if torch.distributed.get_world_size() > 1:
            warn_of_own_batches()

    def _distances(
        self, x: Any, guide_inputs: Any, mask: Tensor | None, sample_ids: Tensor | None
    ) -> Tensor:
        """(P,) distances of what was captured."""
        self._check_mask(mask)
        guide_time = self._timed("guide")
        comparison, xs, ys = self._activations(x, guide_inputs, sample_ids, guide_time)
        with self._timed("distances"):
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
        if guidance.requires_grad and not is_distributed():
            return guidance
        # Also where the weight is 0: backward needs a graph.
        return guidance + 0.0 * task_loss


class _Window:
    """The context of :meth:`Guidance.capture`."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance

    def __enter__(self) -> None:
        self._guidance._check_open()
        self._guidance._warn_of_own_batches()
        self._guidance._start_step()
        self._guidance._start_capture(recording=not self._guidance._idle)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._guidance._end_capture(failed=kind is not None)
        if error is not None and self._guidance._global is not None:
            self._guidance._global.fail(error)
