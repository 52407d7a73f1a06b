"""Guided steps of large batches in the memory of small ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyguide.guidance.activation_store import ActivationStore
from pyguide.guidance.all_processes import is_distributed, telling_others
from pyguide.guidance.chunks import chunk_slices, rows
from pyguide.guidance.comparison import Comparison
from pyguide.guidance.guidance import Guidance
from pyguide.guidance.kept_batch import KeptBatch
from pyguide.guidance.logs import LossRecord
from pyguide.guidance.replay import RandomState, unchanged_buffers
from pyguide.guidance.schedules import whole_number

__all__ = ["LargeBatch", "StepLosses"]

Task = Callable[..., Tensor]


@dataclass(frozen=True)
class StepLosses:
    """The losses of a step, detached scalars."""

    #: What was trained with.
    total: Tensor
    #: The mean of the task's loss over the batch.
    task: Tensor
    #: The weighted guidance term.
    guidance: Tensor


class LargeBatch:
    """Guided steps of large batches in the memory of a chunk, with the gradient of the whole.

    The mean of small batches' CKAs is not the CKA of their union, so gradient accumulation changes
    what guidance trains. This is exact, in two passes: the target and the guide run chunk by chunk
    without a graph, and only the paired activations are kept; the distances of the whole batch
    and their gradients in these activations are computed, one pair after another; then each
    chunk runs through the target again, with a graph, and its backward has the task's gradient
    and that of the guidance term.

    The price is a second forward pass of the target. The memory of a batch of n samples, beside
    that of a step of one chunk, is that of the activations, ``n (sum of d_t + sum of d_g)`` values
    over the distinct paired layers of target and guide, and of one pair: its gradient and what
    its distance needs (n x n or d x d matrices, see :meth:`pyguide.Guidance.plan`).

    Parameters
    ----------
    guidance : Guidance
        If it is timed, its "distances" have their gradient with them.
    chunk_size : int
        Samples that run through the networks at once, at least 1. The last chunk has the rest.
    storage_dtype : torch.dtype, optional
        In which the activations are kept and compared, such as torch.bfloat16, in half the
        memory, which costs accuracy: by default their own. Those in a `guide_cache` of the
        guidance stay there, in its dtype.
    storage_device : str or torch.device, optional
        Where the activations wait, such as "cpu": by default where they are.
    scaler : torch.amp.GradScaler, optional
        Scales what :meth:`backward` differentiates, as ``scaler.scale(loss)`` does. Its ``step``
        and ``update`` are called by you.
    no_sync : callable, optional
        Makes the context in which gradients are not averaged between processes: all chunks but
        the last run in it. By default the target's own ``no_sync``, which
        DistributedDataParallel has.

    Raises
    ------
    ValueError
        For a chunk size that is no number of samples.

    Notes
    -----
    Random numbers that the target draws, such as those of dropout, are the same in both passes,
    on every device that its parameters are on. Its buffers, such as running statistics, change
    once a chunk, as if there was no first pass. BatchNorm layers in training mode normalise by
    their chunk's statistics, as with gradient accumulation: that is another function than the
    whole batch's (a warning says so, once). So is a guide with `guide_mode` "batch_stats" or
    "calibrated", and a `guide_transform` sees chunks.

    Examples
    --------
    >>> import torch
    >>> import torch.nn.functional as F
    >>> from torch import nn
    >>> from pyguide.guidance import Guidance, LargeBatch
    >>> target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    >>> guidance = Guidance(target, guide)
    >>> large = LargeBatch(guidance, chunk_size=128)
    >>> optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    >>> x, y = torch.randn(1000, 8), torch.randint(3, (1000,))
    >>> losses = large.backward(lambda x, y: F.cross_entropy(target(x), y), x, y)
    >>> optimizer.step()
    >>> optimizer.zero_grad()
    >>> guidance.step()
    >>> losses.total == losses.task + losses.guidance
    tensor(True)
    """

    def __init__(
        self,
        guidance: Guidance,
        chunk_size: int,
        *,
        storage_dtype: torch.dtype | None = None,
        storage_device: str | torch.device | None = None,
        scaler: torch.amp.GradScaler | None = None,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.guidance = guidance
        self.chunk_size = whole_number("chunk_size", chunk_size, 1)
        self.storage_dtype = storage_dtype
        self.storage_device = None if storage_device is None else torch.device(storage_device)
        self._scale = _unscaled if scaler is None else scaler.scale
        own: Callable[[], AbstractContextManager[Any]]
        own = getattr(guidance.target, "no_sync", nullcontext)
        self._no_sync = own if no_sync is None else no_sync
        self._warned = False

    def backward(
        self,
        task: Callable[..., Tensor],
        x: Any,
        *others: Any,
        guide_inputs: Any = None,
        mask: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> StepLosses:
        """Add the gradient of ``task loss + guidance`` to the target's parameters.

        Parameters
        ----------
        task : callable
            Runs the target once on a chunk of `x` and `others`, and returns the mean of the
            task's loss over the chunk. It is called twice for each chunk, in the same mode.
        x, *others : Tensor, tuple or dict
            The batch: `x` is what the target sees, and the guide too. Tensors in them are
            split along their first axis, which has n samples in all; the rest is passed as it is.
        guide_inputs, mask, sample_ids
            As for :meth:`pyguide.Guidance.loss`, of the whole batch.

        Returns
        -------
        StepLosses
            Without grad mode, only these, and no gradient.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As :meth:`pyguide.Guidance.loss`; tensors of different first axes; chunks in which a
            layer has another shape.
        """
        with telling_others(self.guidance._global):
            return self._step(task, (x, *others), guide_inputs, mask, sample_ids)

    def _step(
        self,
        task: Task,
        batch: tuple[Any, ...],
        guide_inputs: Any,
        mask: Tensor | None,
        sample_ids: Tensor | None,
    ) -> StepLosses:
        guidance = self.guidance
        chunks = chunk_slices(self.chunk_size, (batch, guide_inputs, mask, sample_ids))
        self._warn_of_batch_norm(chunks)
        if guidance._idle:
            task_loss = self._second_pass(task, batch, chunks)
            return self._logged(task_loss, torch.zeros_like(task_loss), None)
        guidance._check_mask(mask)
        first = self._first_pass(task, batch, chunks, guide_inputs, sample_ids)
        with guidance._timed("distances"):
            distances, gradients = self._distances(first, mask)
        if torch.is_grad_enabled():
            end = RandomState.of(guidance.target)
            self._second_pass(task, batch, chunks, gradients, first.random)
            end.restore()
        return self._logged(first.task_loss, guidance.weight * distances.sum(), distances)

    def _first_pass(
        self,
        task: Task,
        batch: Any,
        chunks: list[slice],
        guide_inputs: Any,
        sample_ids: Tensor | None,
    ) -> _FirstPass:
        """Run both networks without a graph, and keep their paired activations."""
        guidance = self.guidance
        kept = guidance._kept_batch(sample_ids)
        if kept is not None and guidance.guide_cache is not None:
            guidance.guide_cache.hits += 1
        random, losses, first = [], [], None
        with torch.no_grad(), self._no_sync(), unchanged_buffers(guidance.target):
            for chunk in chunks:
                random.append(RandomState.of(guidance.target))
                with guidance.capture():
                    loss = task(*rows(batch, chunk))
                losses.append(_share(chunk, chunks) * loss)
                if kept is None:
                    comparison, xs, ys = guidance._activations(
                        rows(batch[0], chunk),
                        rows(guide_inputs, chunk),
                        rows(sample_ids, chunk),
                        guidance._timed("guide"),
                    )
                else:
                    comparison, xs = guidance._target_activations()
                if first is None:
                    first = self._stores(comparison, chunks[-1].stop)
                first[0].put(chunk, xs)
                if guidance.guide_cache is None:
                    first[1].put(chunk, ys)
        assert first is not None
        targets, guides = first
        kept = kept or guidance._kept_batch(sample_ids)
        return _FirstPass(torch.stack(losses).sum(), comparison, targets, kept or guides, random)

    def _stores(self, comparison: Comparison, n: int) -> tuple[ActivationStore, ActivationStore]:
        sides = comparison.target_sources, comparison.guide_sources
        target, guide = (
            ActivationStore(sources, n, self.storage_dtype, self.storage_device)
            for sources in sides
        )
        return target, guide

    def _distances(
        self, first: _FirstPass, mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The distances (P,), and the gradients of their weighted sum in the target's layers.

        One pair after another, so that the matrices of one pair are held at a time; a layer in
        several pairs gives its Gram matrix to each anew.
        """
        comparison, guidance = first.comparison, self.guidance
        comparison.check(first.targets.shapes(), first.guides.shapes(), mask)
        gradients: list[Tensor | None] = [None] * len(comparison.target_sources)
        values, flags = [], []
        for p, (i, j) in enumerate(comparison.indices):
            later = comparison.indices[p + 1 :]
            x = first.targets.take(i, last=all(i != t for t, _ in later))
            y = first.guides.take(j, last=all(j != g for _, g in later))
            leaf = x.tensor.detach().requires_grad_(torch.is_grad_enabled())
            pair = guidance._comparison_of([comparison.pairs[p]])
            distance, degenerate = pair.compare([x._replace(tensor=leaf)], [y], mask)
            if leaf.requires_grad:
                weighted = self._scale(guidance.weight * distance.sum())
                (gradient,) = torch.autograd.grad(weighted, leaf)
                before = gradients[i]
                gradients[i] = gradient if before is None else before + gradient
            values.append(distance.detach())
            flags.append(degenerate)
        known = [flag for flag in flags if flag is not None]
        if known:
            guidance._degeneracy.update(torch.cat(known), comparison.paths)
        return torch.cat(values), gradients

    def _second_pass(
        self,
        task: Task,
        batch: Any,
        chunks: list[slice],
        gradients: Sequence[Tensor | None] = (),
        random: Sequence[RandomState] = (),
    ) -> Tensor:
        """Run the target again with a graph; backward of the task's loss and the guidance."""
        guidance = self.guidance
        losses = []
        for k, chunk in enumerate(chunks):
            if random:
                random[k].restore()
            with nullcontext() if k == len(chunks) - 1 else self._no_sync():
                with guidance.capture():
                    loss = _share(chunk, chunks) * task(*rows(batch, chunk))
                losses.append(loss.detach())
                roots: list[Tensor] = []
                seeds: list[Tensor | None] = []
                for layer, gradient in zip(
                    guidance._target_activations()[1] if gradients else (), gradients, strict=True
                ):
                    assert gradient is not None
                    if layer.tensor.requires_grad:
                        roots.append(layer.tensor)
                        seeds.append(gradient[chunk].to(layer.tensor.dtype))
                if not guidance.aligning:
                    roots, seeds = [self._scale(loss), *roots], [None, *seeds]
                elif not roots or is_distributed():
                    # DistributedDataParallel waits for the gradient of every parameter.
                    roots, seeds = [self._scale(0.0 * loss), *roots], [None, *seeds]
                if torch.is_grad_enabled():
                    torch.autograd.backward(roots, seeds)
        return torch.stack(losses).sum()

    def _logged(self, task: Tensor, term: Tensor, distances: Tensor | None) -> StepLosses:
        guidance = self.guidance
        weight = guidance.weight
        guidance._record = LossRecord(weight, term.detach(), distances, task=task.detach())
        total = term if guidance.aligning else task + term
        return StepLosses(total.detach(), task.detach(), term.detach())

    def _warn_of_batch_norm(self, chunks: Sequence[slice]) -> None:
        if self._warned or len(chunks) == 1:
            return
        if any(isinstance(m, _BatchNorm) and m.training for m in self.guidance.target.modules()):
            self._warned = True
            warnings.warn(
                f"the target has BatchNorm layers in training mode: they normalise by their chunk "
                f"of {self.chunk_size} samples, not by the whole batch",
                stacklevel=3,
            )


class _FirstPass(NamedTuple):
    """What the first pass leaves."""

    task_loss: Tensor
    comparison: Comparison
    targets: ActivationStore
    guides: ActivationStore | KeptBatch
    #: Before each chunk.
    random: list[RandomState]


def _share(chunk: slice, chunks: Sequence[slice]) -> float:
    """The chunk's part of the batch."""
    return (chunk.stop - chunk.start) / chunks[-1].stop


def _unscaled(loss: Tensor) -> Tensor:
    return loss
