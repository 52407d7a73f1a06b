"""The guide's activations, computed once and used again by sample."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyguide.capture.recorder import Source
from pyguide.guidance.cache_checks import check_row, checked_row
from pyguide.guidance.cache_folder import CacheFolder
from pyguide.guidance.cache_key import (
    CacheKey,
    cache_key,
    difference,
    fingerprint,
    labels,
)
from pyguide.guidance.comparison import Captures
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.kept_batch import KeptBatch
from pyguide.guidance.sample_store import KeptLayer, SampleStore
from pyguide.guidance.schedules import whole_number
from pyguide.progress import Progress, shown

if TYPE_CHECKING:
    from pyguide.guidance.guidance import Guidance

__all__ = ["GuideCache"]

_DTYPES = {
    "activations": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "grams": (torch.float64, torch.float32),
}


class GuideCache:
    """Keeps what a frozen guide gives for each sample, so that it runs in the first epoch only.

    Give it to :class:`pyguide.Guidance` as `guide_cache`, and each batch's positions in the data
    set to :meth:`pyguide.Guidance.loss` as `sample_ids`. A batch of samples that were all seen
    before needs no forward pass of the guide. What is compared is what is kept, also for a batch
    that was not seen before.

    The guide must give the same for a sample in every epoch. So augmentation is for the target
    alone: where it sees augmented samples, pass the plain ones as `guide_inputs`.

    Parameters
    ----------
    folder : str or Path, optional
        Where the activations are kept, in files that are mapped into memory. A later run goes on
        with it, also if this one was killed. By default they are kept in memory.
    samples : int
        N, the size of the data set.
    keep : "activations" or "grams"
        What is kept of a layer: (N, ...) activations; or, once they are all there, in their place
        the (N, N) Gram matrix, of which a batch takes its part. The latter is for distances that
        are functions of centred Gram matrices, without masks and per-token pairs.
    dtype : torch.dtype, optional
        In which they are kept, and activations compared, such as torch.bfloat16, in half the
        space, which costs accuracy. By default activations in their own, Gram matrices in
        float64.
    key : str, optional
        A name for what cannot be seen from here: the version of the data, what the
        `guide_transform` or an `extract` without a name does.

    Raises
    ------
    ValueError, TypeError
        For a number of samples, a kind, a dtype or a key that is none. In the first step, if the
        folder is of another guide, other layers, another N, kind, `dtype` or `key`, or another
        type of autocast. Later, if a layer gives another shape for some samples (padding to the
        longest of a batch), or something else than before for a sample that comes back in a
        batch of which others are missing.
    UserError
        In the first step, while another process fills the folder.
    OSError
        If the folder cannot be written, or the disk has not enough space: before anything is
        kept.

    Notes
    -----
    A layer takes N d values, or N^2 of a Gram matrix; before that, the activations too. Reading
    copies a batch's part to the guide's device, so it pays where the guide is slower than that.
    :meth:`pyguide.Guidance.plan` counts a step that does not read.

    The loss is that without a cache but for rounding: in a batch of other samples the guide's
    matrix products may be summed in another order. Gram matrices are computed in float64, on
    the guide's device if that is a GPU, of features minus their mean over the data set.

    Whether a folder is stale is told by the names, types and values of the guide's parameters
    and buffers, its printed modules, the paired layers and the options; not by the data: change
    `key` with them. A change of the guide's weights in this process is seen too, unless it is
    made through ``.data``.

    Several processes may read a folder that is complete; one at a time may fill it. For
    distributed training, :meth:`fill` it in one process before.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from pyguide.guidance import Guidance, GuideCache
    >>> data = torch.randn(128, 8)
    >>> target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    >>> cache = GuideCache(samples=len(data))
    >>> guidance = Guidance(target, guide, [("0", "1")], guide_cache=cache)
    >>> for epoch in range(3):
    ...     for ids in torch.randperm(len(data)).split(64):
    ...         with guidance.capture():
    ...             _ = target(data[ids])
    ...         loss = guidance.loss(data[ids], sample_ids=ids)
    >>> cache.complete, cache.misses, cache.hits
    (True, 2, 4)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        samples: int,
        keep: str = "activations",
        dtype: torch.dtype | None = None,
        key: str | None = None,
    ) -> None:
        if keep not in _DTYPES:
            raise ValueError(f"keep must be one of {tuple(_DTYPES)}, got {keep!r}")
        if dtype is not None and dtype not in _DTYPES[keep]:
            names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES[keep])
            raise ValueError(f"dtype must be one of {names} for keep={keep!r}, got {dtype!r}")
        if not isinstance(key, str | None):
            raise TypeError(f"key must be a string, got {key!r}")
        self.folder = None if folder is None else Path(folder)
        self.samples = whole_number("samples", samples, 1)
        self.keep = keep
        self.dtype = torch.float64 if dtype is None and keep == "grams" else dtype
        self.key = key
        #: Batches for which the guide ran, and batches for which it did not.
        self.misses = self.hits = 0
        self._key: CacheKey | None = None
        self._store: SampleStore | None = None
        self._closed = False
        # Which guides, and in what state, have the key.
        self._known: WeakKeyDictionary[FrozenGuide, Hashable] = WeakKeyDictionary()

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else repr(str(self.folder))
        return f"<GuideCache {where}: {len(self)} of {self.samples} samples>"

    def __len__(self) -> int:
        """Samples that are kept, 0 before the first step."""
        return 0 if self._store is None else int(self._store.present.sum())

    @property
    def complete(self) -> bool:
        """Whether every sample is kept; False before the first step."""
        return self._store is not None and self._store.complete

    def fill(
        self,
        guidance: Guidance,
        batches: Iterable[tuple[Tensor, Any]],
        *,
        progress: Progress = False,
    ) -> None:
        """Run the guide on samples that are not kept yet, without any target.

        Parameters
        ----------
        guidance : Guidance
            That has this cache, and pairs that need no more example.
        batches : iterable of (Tensor, inputs)
            Sample ids, (n,) int64, and what :meth:`pyguide.Guidance.loss` gets as `x`.
        progress : bool or callable
            Whether to show a bar (needs tqdm); or a function of the number of batches done and
            their total, None if `batches` has no length.

        Raises
        ------
        ValueError, RuntimeError
            If `guidance` has another cache, is released or closed, or its pairs are a rule or
            globs and it was given no `example`; otherwise as in a step.
        """
        if guidance.guide_cache is not self:
            raise ValueError("guidance must have this cache: Guidance(..., guide_cache=cache)")
        total = len(batches) if isinstance(batches, Sized) else None
        for ids, inputs in shown(batches, total, progress):
            if guidance._kept_batch(ids) is None:
                guidance._to_cache(ids, guidance._guide_captures(inputs))

    def close(self) -> None:
        """Let another process, or another GuideCache, fill the folder; this one only reads then.

        Happens by itself when every sample is kept and when the process ends.
        """
        self._closed = True
        if self._store is not None:
            self._store.close()

    def _kept(
        self, guide: FrozenGuide, sources: Sequence[Source], ids: Tensor, device: torch.device
    ) -> KeptBatch | None:
        """A batch, if all of it is kept."""
        store = self._opened(guide, sources, device)
        if not store.has(ids):
            return None
        return KeptBatch(store, store.positions(labels(sources, self.key)), ids, device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(
        self, guide: FrozenGuide, sources: Sequence[Source], ids: Tensor, captures: Captures
    ) -> KeptBatch:
        """Keep the activations of a batch; what is to be compared in their place."""
        if self._closed:
            raise RuntimeError("this GuideCache is closed: make another one for new samples")
        names, device = labels(sources, self.key), captures[0].tensor.device
        store = self._opened(guide, sources, device)
        self.misses += 1
        rows = {
            name: checked_row(name, captured, ids)
            for name, captured in zip(names, captures, strict=True)
        }
        dtype = self.dtype if self.keep == "activations" else None
        if store.layers is None:
            store.create(
                [
                    KeptLayer(name, tuple(row.shape[1:]), dtype or row.dtype)
                    for name, row in rows.items()
                ]
            )
        assert store.layers is not None
        for layer in store.layers:
            check_row(rows[layer.label], layer, converted=dtype is not None)
        store.put(ids, [rows[layer.label] for layer in store.layers])
        return KeptBatch(store, store.positions(names), ids, device)

    @torch.inference_mode(False)
    def _opened(
        self, guide: FrozenGuide, sources: Sequence[Source], device: torch.device
    ) -> SampleStore:
        """The store, if it is of this guide as it is now; ValueError otherwise."""
        state = fingerprint(guide, sources)
        if self._store is not None and self._known.get(guide) == state:
            return self._store
        dtype = None if self.dtype is None else str(self.dtype)
        options = {"samples": self.samples, "keep": self.keep, "dtype": dtype}
        key = cache_key(guide, sources, self.key, **options)
        if self._store is None or self._key is None:
            folder = None if self.folder is None else CacheFolder(self.folder, key)
            gram_dtype = self.dtype if self.keep == "grams" else None
            # Not every accelerator has float64.
            device = device if device.type == "cuda" else torch.device("cpu")
            self._store = SampleStore(self.samples, folder, gram_dtype, device)
            self._key = key
        found = difference(self._key, key)
        if found:
            raise ValueError(
                f"the guide cache holds other activations than these: {found}. Make another "
                "GuideCache for them"
            )
        self._known[guide] = state
        return self._store
