"""What a guide cache refuses, by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.capture.recorder import Captured
from pyguide.distances import Distance
from pyguide.guidance.comparison import Captures
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.pairing import Pair
from pyguide.guidance.sample_store import KeptLayer

__all__ = [
    "check_count",
    "check_distance",
    "check_guide",
    "check_mask",
    "check_pairs",
    "check_row",
    "checked_ids",
    "checked_row",
]

_ACTIVATIONS = 'give GuideCache keep="activations"'


def check_guide(guide: FrozenGuide, key: str | None) -> None:
    """Raise ValueError unless the guide gives the same for a sample in every batch."""
    if guide.mode != "eval":
        raise ValueError(
            f"guide_cache needs guide_mode='eval', got {guide.mode!r}: with it a sample's "
            "activations depend on the batches that the guide sees"
        )
    if guide.transform is None:
        return
    if hasattr(guide.transform, "state_dict"):
        raise ValueError(
            f"guide_cache cannot keep what the guide makes of {guide.transform!r}: it is random, "
            "or another function in every call"
        )
    if key is None:
        raise ValueError(
            "guide_cache with a guide_transform needs GuideCache(..., key=...), a name for what "
            "the transform does, which must be the same for a sample in every epoch"
        )


def check_distance(keep: str, distance: Distance, *, together: bool) -> None:
    """Raise ValueError if the distance cannot be computed from what is kept.

    `together` is whether the batches of several processes are compared as one.
    """
    if keep == "grams" and not distance.of_grams:
        raise ValueError(
            f"distance {distance.name!r} needs more than Gram matrices: {_ACTIVATIONS}"
        )
    if keep == "grams" and together:
        raise ValueError(
            "the batches of several processes are compared as one, and each has the Gram matrices "
            f'of its own alone: {_ACTIVATIONS}, or Guidance process_group="local"'
        )


def check_pairs(keep: str, pairs: Sequence[Pair]) -> None:
    """Raise ValueError if a pair cannot be compared by what is kept."""
    for pair in pairs:
        if keep == "grams" and pair.per_token:
            raise ValueError(
                f"the pair {pair.paths} is compared per token, and there would be a Gram matrix "
                f"for each token: {_ACTIVATIONS}"
            )


def check_mask(keep: str, mask: Tensor | None) -> None:
    """Raise ValueError if padding cannot be left out of what is kept."""
    if keep == "grams" and mask is not None:
        raise ValueError(
            "the guide's Gram matrices are kept, of which padding cannot be left out later: "
            f"{_ACTIVATIONS} to use a mask"
        )


def checked_ids(sample_ids: object, samples: int) -> Tensor:
    """The ids on the CPU; TypeError or ValueError if they are none."""
    if sample_ids is None:
        raise ValueError(
            "this Guidance has a guide_cache, so loss() needs sample_ids=, the positions of "
            "the batch in the data set; for other data make another Guidance, without it"
        )
    if not isinstance(sample_ids, Tensor):
        raise _no_ids(repr(sample_ids))
    if sample_ids.dtype != torch.int64 or sample_ids.dim() != 1:
        raise _no_ids(f"{sample_ids.dtype} {tuple(sample_ids.shape)}")
    ids = sample_ids.cpu()
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < samples:
        raise ValueError(
            f"sample_ids must be in 0 ... {samples - 1}, as GuideCache has samples={samples}, "
            f"got {int(ids.min())} ... {int(ids.max())}"
        )
    return ids


def _no_ids(got: str) -> TypeError:
    return TypeError(f"sample_ids must be an int64 tensor of shape (n,), got {got}")


def check_count(ids: Tensor, captures: Captures) -> None:
    """Raise ValueError unless there is an id for each sample of the target's batch."""
    for captured in captures:
        if captured.tensor.shape[:1] != ids.shape:
            raise ValueError(
                f"sample_ids has {len(ids)} ids, but a target layer gave "
                f"{tuple(captured.tensor.shape)}: one id for each sample of the batch"
            )


def checked_row(label: str, captured: Captured, ids: Tensor) -> Tensor:
    """The activations of a guide layer; ValueError if they cannot be kept by sample."""
    if captured.mask is not None:
        raise ValueError(
            f"guide layer {label!r} gives padded sequences (a PackedSequence, a nested tensor), "
            "whose length changes with the batch: guide_cache cannot keep them"
        )
    if captured.tensor.shape[:1] != ids.shape:
        raise ValueError(
            f"guide layer {label!r} gave {tuple(captured.tensor.shape)} for {len(ids)} "
            "sample_ids: the first axis is the batch and must be the same"
        )
    return captured.tensor


def check_row(row: Tensor, kept: KeptLayer, *, converted: bool) -> None:
    """Raise ValueError unless a batch is like what is kept; its type may be `converted`."""
    if row.shape[1:] != kept.shape or (row.dtype != kept.dtype and not converted):
        raise ValueError(
            f"guide layer {kept.label!r} gave {row.dtype} {tuple(row.shape[1:])} a sample, and "
            f"{kept.dtype} {kept.shape} before: guide_cache needs the same for every sample"
        )
