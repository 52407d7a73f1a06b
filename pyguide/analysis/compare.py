"""Comparing every layer of one network with every layer of another over a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyguide.analysis.batches import Batch, Mask, batches_of, on_device, versions_of
from pyguide.analysis.checkpoint import Checkpoint
from pyguide.analysis.layer_grams import LayerGrams
from pyguide.analysis.similarity import LayerSimilarity
from pyguide.analysis.streaming import StreamingCKA, is_too_small
from pyguide.ops.hsic import CenteredGram, least_samples
from pyguide.progress import Progress, shown

__all__ = ["compare_networks"]

Layers = str | Sequence[str] | None


def compare_networks(
    first: nn.Module,
    second: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    *,
    layers: Layers = None,
    second_layers: Layers = None,
    debiased: bool = True,
    precision: str | None = None,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    mask: Mask | None = None,
    progress: Progress = False,
    names: tuple[str, str] = ("first", "second"),
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
) -> LayerSimilarity:
    """Linear CKA of every layer of one network with every layer of another over a data set.

    Each network sees each batch once, in eval mode and without gradient, and is left as it was.
    A layer's Gram matrix is computed as soon as the layer returns, so no activation is kept: the
    memory is that of a forward pass and n x n numbers a layer, n the batch size. Over the batches
    HSIC is summed in float64, see :class:`StreamingCKA`.

    Parameters
    ----------
    first, second : nn.Module
        The networks, on any devices; DataParallel and DistributedDataParallel are looked
        through. Without `second` the first is compared with itself, on one
        forward pass a batch.
    data : iterable
        Batches, of a DataLoader say: a tensor (n, ...), a tuple or list whose first item is the
        input (labels are not looked at), or a dict of keyword arguments. An input that is itself
        a tuple is several arguments. Read once, in order.
    layers, second_layers : str or sequence of str, optional
        Paths of layers (``"layer1.0.conv1"``), single calls of layers that are called several
        times (``"relu:1"`` is the second), or globs: ``*`` and ``?`` stand for characters of one
        part of a path, ``**`` for any number of parts. By default every module that is called
        and calls no other. Of these, and of what a glob matches, layers that give no tensor of
        floating point are left out, and with a warning those whose tensor cannot be compared:
        its first axis is not the batch, say. Without `second`, giving `second_layers` compares
        some layers of the network with others of it.
    debiased : bool
        The debiased estimator, which needs batches of at least 4 samples and hardly depends on
        their size; else the biased one, which does: see :class:`StreamingCKA`.
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features, see :func:`pyguide.cka_pairs`.
    device : torch.device or str, optional
        Where inputs go; by default to each network's first parameter. Networks are not moved.
    max_samples : int, optional
        Stop after so many; the last batch is cut.
    mask : callable, optional
        A function of a batch, as `data` gives it, that returns which positions of its sequences
        are valid, or None for all: (n, T), bool or 0 and 1. By default the ``attention_mask`` of
        a dict, if it has one. It is for layers that are (n, T, ...), whose padding counts
        nothing, as in :meth:`pyguide.Guidance.loss`; others ignore it (but a map of T channels
        is not told from a sequence). Shorter or longer padding then gives the same values,
        if it does in the networks.
    progress : bool or callable
        Whether to show a bar (needs tqdm); or a function of the number of batches done and their
        total, None if `data` has no length.
    names : (str, str)
        What the networks are called, in the result and in messages.
    checkpoint : str or Path, optional
        A file for the sums, written at most every 30 seconds and when an exception, Ctrl-C for
        example, ends the comparison; removed at a regular end. A call that finds it goes on
        after the batches that were counted. For that `data` must give the same batches in the
        same order: without shuffling, or with a seed.
    keep_checkpoint : bool
        Leave the file at a regular end too, with all sums, and remove it yourself when the
        result is saved: until then a call that finds it runs one batch only.

    Returns
    -------
    LayerSimilarity
        Values (L1, L2) float64 on the CPU; layers in the order in which they run, a layer that
        is called several times once for each call (``"relu:0"``, ``"relu:1"``).

    Raises
    ------
    TypeError, ValueError
        Before any forward pass: for what is no network, no layer that a path or glob means, no
        batches, TorchScript. In the first: for a named layer that is not called, or whose output
        is not one tensor of floating point with the batch as first axis; a glob of which no
        layer is called; two layers of one name. For a batch whose mask is not (n, T), or, of
        `mask`, fits no layer. When it shows, at the latest at the end: for a checkpoint of
        another comparison.
    RuntimeError
        If a layer is called more or less often in a later batch than in the first.
    OSError
        If the checkpoint cannot be read, or written: the latter before any forward pass.

    Examples
    --------
    >>> import torch
    >>> from pyguide.analysis import compare_networks
    >>> def network(width):
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    ...     )
    >>> batches = torch.randn(200, 8).split(50)
    >>> similarity = compare_networks(network(16), network(32), batches, layers=["0", "2"])
    >>> similarity.rows, similarity.columns, similarity.values.shape
    (('0', '2'), ('0', '1', '2'), torch.Size([2, 3]))
    """
    data = _checked(first, second, data, max_samples, mask, debiased)
    if second is None and second_layers is not None:
        second = first
    options: dict[str, Any] = {
        "debiased": debiased,
        "precision": precision,
        "device": None if device is None else torch.device(device),
    }
    sums = StreamingCKA(debiased=debiased, precision=precision)
    saved = Checkpoint(checkpoint, sums, keep=keep_checkpoint)
    rows = LayerGrams(first, layers, f"{names[0]} network", **options)
    columns = None
    if second is not None:
        columns = LayerGrams(second, second_layers, f"{names[1]} network", **options)
    batch_size = 0
    with saved, rows, columns or contextlib.nullcontext():
        for batch in shown(batches_of(data, max_samples, mask), _length(data), progress):
            batch_size = max(batch_size, batch.n)
            counted = saved.next(batch.n)
            if is_too_small(batch.n, debiased, stacklevel=3) or (counted and rows.settled):
                continue
            is_first = not rows.settled
            grams = _grams(rows, columns, batch, mask_must_fit=mask is not None)
            if is_first:
                saved.check(rows, columns, grams)
            if not counted:
                sums.update_grams(*grams)
                saved.counted()
            del grams  # before the next forward pass
        if not batch_size:
            raise ValueError("data gave no batch: a generator or iterator can be read only once")
        saved.check_end()
        similarity = _similarity(sums, rows, columns or rows, names, batch_size, columns is None)
    return similarity


def _grams(
    rows: LayerGrams, columns: LayerGrams | None, batch: Batch, *, mask_must_fit: bool
) -> tuple[list[CenteredGram], list[CenteredGram] | None]:
    """Both networks' Gram matrices for one batch; None for a network compared with itself."""
    inputs, n, mask = on_device(tuple(batch), rows.device)
    versions = versions_of(inputs)
    xs = rows(inputs, n, mask)
    ys = None
    if columns is not None:
        if versions_of(inputs) != versions:
            raise RuntimeError(
                "the first network changed its input in place, so the second would see something "
                "else: set inplace=False on its first layer"
            )
        if columns.device != rows.device:
            inputs, n, mask = on_device(tuple(batch), columns.device)
        ys = columns(inputs, n, mask)
    networks = [rows] if columns is None else [rows, columns]
    if mask is not None and mask_must_fit and not any(network.used_mask for network in networks):
        raise ValueError(
            f"the mask of a batch is (n, T) = {tuple(mask.shape)}, but no layer that is compared "
            "is (n, T, ...) with these: leave mask out, or name other layers"
        )
    return xs, ys


def _similarity(
    sums: StreamingCKA,
    rows: LayerGrams,
    columns: LayerGrams,
    names: tuple[str, str],
    batch_size: int,
    with_itself: bool,
) -> LayerSimilarity:
    of_rows, of_columns = (flags.tolist() for flags in sums.degenerate())
    return LayerSimilarity(
        values=sums.compute().cpu(),
        rows=rows.names,
        columns=columns.names,
        row_shapes=rows.shapes,
        column_shapes=columns.shapes,
        names=names,
        samples=sums.samples,
        batches=sums.batches,
        debiased=sums.debiased,
        degenerate_rows=_chosen(rows.names, of_rows),
        degenerate_columns=_chosen(columns.names, of_columns),
        batch_size=batch_size,
        with_itself=with_itself,
    )


def _chosen(names: tuple[str, ...], flags: list[bool]) -> tuple[str, ...]:
    return tuple(name for name, flag in zip(names, flags, strict=True) if flag)


def _checked(
    first: Any,
    second: Any,
    data: Any,
    max_samples: int | None,
    mask: Any,
    debiased: bool,
) -> Iterable[Any]:
    for name, network in (("first", first), ("second", second)):
        if not isinstance(network, nn.Module) and not (network is None and name == "second"):
            raise TypeError(
                f"{name} must be a torch.nn.Module, got {type(network).__name__}; to compare a "
                "network with itself: compare_networks(network, data=loader)"
            )
    if data is None or isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be an iterable of batches, got {type(data).__name__}; for a tensor of all "
            "inputs: data=inputs.split(256)"
        )
    if mask is not None and not callable(mask):
        raise TypeError(
            "mask must be a function of a batch of data that returns its mask, got "
            f"{type(mask).__name__}; where a batch is (inputs, mask): mask=lambda batch: batch[1]"
        )
    least = least_samples(debiased)
    if max_samples is not None and max_samples < least:
        raise ValueError(f"max_samples must be at least {least}, got {max_samples}")
    return data


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None
