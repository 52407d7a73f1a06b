"""Guided steps of large batches in the memory of small ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyguide.guidance.activation_store import ActivationStore
from pyguide.guidance.all_processes import is_distributed, telling_others
from pyguide.guidance.batch_memory import BatchMemory, batch_memory, pair_groups
from pyguide.guidance.chunks import chunk_slices, rows
from pyguide.guidance.comparison import Captures, Comparison, Distances, used_layers
from pyguide.guidance.gradient_sync import local_gradients
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

    The price is a second forward pass of the target. The memory of a batch of n samples is that
    of the activations, ``n (sum of d_t + sum of d_g)`` values over the distinct paired layers of
    target and guide, and the most of what follows each other: a chunk's forward passes, one
    pair's n x n or d x d matrices, and a chunk's step. :meth:`memory` computes it.

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
        the last run in it. By default the target's own: the ``no_sync`` of
        DistributedDataParallel, or ``set_requires_gradient_sync`` of what `fully_shard` sharded.
    matrix_bytes : int
        Pairs that follow each other and share a layer are compared in one call, which computes
        its Gram matrix once, if all their matrices together take no more bytes than this. Other
        pairs are compared one by one, and so are those of a distance that does not tell its
        memory, and of a batch that is spread over processes.

    Raises
    ------
    ValueError
        For a chunk size that is no number of samples, or `matrix_bytes` that is no size.

    Notes
    -----
    Random numbers that the target draws, such as those of dropout, are the same in both passes,
    from the global generators of torch, on every device that its parameters are on, of Python and
    of NumPy: not from a generator of its own. Its buffers, such as running statistics, change
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
        matrix_bytes: int = 1 << 27,
    ) -> None:
        self.guidance = guidance
        self.chunk_size = whole_number("chunk_size", chunk_size, 1)
        self.storage_dtype = storage_dtype
        self.storage_device = None if storage_device is None else torch.device(storage_device)
        self._scale = _unscaled if scaler is None else scaler.scale
        self._no_sync = partial(local_gradients, guidance.target) if no_sync is None else no_sync
        self.matrix_bytes = whole_number("matrix_bytes", matrix_bytes, 0)
        self._warned = False
        self._groups: tuple[tuple[object, ...], list[list[int]]] | None = None

    def memory(self, n: int, example: Any, guide_inputs: Any = None) -> BatchMemory:
        """Bytes that a step of n samples holds at most, from the layers' shapes.

        Runs one forward pass of both networks in eval mode and leaves both as they were.

        Parameters
        ----------
        n : int
            Samples of the batch, at least 2.
        example, guide_inputs
            As for :meth:`pyguide.Guidance.plan`: a few samples are enough.

        Returns
        -------
        BatchMemory
            If `storage_device` is another device, its activations are there. Masks are not
            counted.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> from pyguide.guidance import Guidance, LargeBatch
        >>> target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
        >>> large = LargeBatch(Guidance(target, guide), chunk_size=128)
        >>> large.memory(1000, torch.randn(2, 8)).activations == 1000 * (16 + 32) * 4
        True
        """
        whole_number("n", n, 2)
        comparison, xs, ys = self.guidance._compared_layers(example, guide_inputs)

        def of_batch(layer: Tensor) -> Tensor:
            dtype = self.storage_dtype or layer.dtype
            return torch.empty((n, *layer.shape[1:]), dtype=dtype, device="meta")

        shapes = [of_batch(x) for x in xs], [of_batch(y) for y in ys]
        return batch_memory(comparison, *shapes, self.matrix_bytes)

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
            layer has another shape; a target with lazy layers that have seen no batch.
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
        tensors = (*guidance.target.parameters(), *guidance.target.buffers())
        if any(map(nn.parameter.is_lazy, tensors)):
            raise ValueError(
                "the target has lazy layers that have seen no batch, and the first would count "
                "twice: run it once before, such as on one sample in eval mode"
            )
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
        random, losses = [], []
        stores: list[ActivationStore] = []
        with torch.no_grad(), self._no_sync(), unchanged_buffers(guidance.target):
            for chunk in chunks:
                random.append(RandomState.of(guidance.target))
                with guidance.capture():
                    loss = task(*rows(batch, chunk))
                losses.append(_share(chunk, chunks) * loss)
                captured: list[Captures]
                if kept is None:
                    comparison, *captured = guidance._activations(
                        rows(batch[0], chunk),
                        rows(guide_inputs, chunk),
                        rows(sample_ids, chunk),
                        guidance._timed("guide"),
                    )
                else:
                    comparison, *captured = guidance._target_activations()
                stores = stores or self._stores(comparison, chunks[-1].stop)
                if guidance.guide_cache is not None:
                    del captured[1:]
                while captured:  # so that they are gone when the next chunk runs
                    stores[len(captured) - 1].put(chunk, captured.pop())
        kept = kept or guidance._kept_batch(sample_ids)
        return _FirstPass(
            torch.stack(losses).sum(), comparison, stores[0], kept or stores[1], random
        )

    def _stores(self, comparison: Comparison, n: int) -> list[ActivationStore]:
        """For the target and the guide."""
        return [
            ActivationStore(sources, n, self.storage_dtype, self.storage_device)
            for sources in (comparison.target_sources, comparison.guide_sources)
        ]

    def _distances(
        self, first: _FirstPass, mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The distances (P,), and the gradients of their weighted sum in the target's layers."""
        comparison, guidance = first.comparison, self.guidance
        targets, guides = first.targets.shapes(), first.guides.shapes()
        comparison.check(targets, guides, mask)
        gradients: list[Tensor | None] = [None] * len(targets)
        values, flags = [], []
        for group in self._calls(comparison, targets, guides):
            distances, degenerate = self._compared(first, group, mask, gradients)
            values.append(distances)
            flags.append(degenerate)
        known = [flag for flag in flags if flag is not None]
        if known:
            guidance._degeneracy.update(torch.cat(known), comparison.paths)
        return torch.cat(values), gradients

    def _calls(
        self, comparison: Comparison, targets: Captures, guides: Captures
    ) -> list[list[int]]:
        """Which pairs are compared in each call; found anew for other shapes."""
        xs, ys = [x.tensor for x in targets], [y.tensor for y in guides]
        key = (comparison, *((x.shape, x.dtype) for x in (*xs, *ys)))
        if self._groups is None or self._groups[0] != key:
            self._groups = key, pair_groups(comparison, xs, ys, self.matrix_bytes)
        return self._groups[1]

    def _compared(
        self,
        first: _FirstPass,
        group: Sequence[int],
        mask: Tensor | None,
        gradients: list[Tensor | None],
    ) -> Distances:
        """Distances of the pairs of a group; adds their gradient to `gradients`."""
        comparison, guidance = first.comparison, self.guidance
        used = used_layers([comparison.indices[p] for p in group])
        later = comparison.indices[group[-1] + 1 :]
        xs = [first.targets.take(i, last=all(i != t for t, _ in later)) for i in used.left]
        ys = [first.guides.take(j, last=all(j != g for _, g in later)) for j in used.right]
        leaves = [x.tensor.detach().requires_grad_(torch.is_grad_enabled()) for x in xs]
        xs = [x._replace(tensor=leaf) for x, leaf in zip(xs, leaves, strict=True)]
        some = guidance._comparison_of([comparison.pairs[p] for p in group])
        distances, degenerate = some.compare(xs, ys, mask)
        if torch.is_grad_enabled():
            weighted = self._scale(guidance.weight * distances.sum())
            for i, gradient in zip(used.left, torch.autograd.grad(weighted, leaves), strict=True):
                before = gradients[i]
                gradients[i] = gradient if before is None else before + gradient
        return distances.detach(), degenerate

    def _second_pass(
        self,
        task: Task,
        batch: Any,
        chunks: list[slice],
        gradients: Sequence[Tensor | None] = (),
        random: Sequence[RandomState] = (),
    ) -> Tensor:
        """Run the target again with a graph; backward of the task's loss and the guidance."""
        losses = []
        for k, chunk in enumerate(chunks):
            if random:
                random[k].restore()
            with nullcontext() if k == len(chunks) - 1 else self._no_sync():
                with self.guidance.capture():
                    loss = _share(chunk, chunks) * task(*rows(batch, chunk))
                self._chunk_backward(loss, chunk, gradients)
            losses.append(loss.detach())
            del loss
        return torch.stack(losses).sum()

    def _chunk_backward(
        self, loss: Tensor, chunk: slice, gradients: Sequence[Tensor | None]
    ) -> None:
        """Of the task's loss, and of the captured layers with their `gradients`."""
        guidance = self.guidance
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
