"""What cached activations of a guide depend on, so that others are never taken for them."""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyguide.capture.paths import unwrapped
from pyguide.capture.recorder import Extract, Source
from pyguide.capture.versions import version_of
from pyguide.guidance.guide import FrozenGuide
from pyguide.guidance.timing import device_of

__all__ = ["CacheKey", "cache_key", "difference", "digest", "fingerprint", "labels"]

#: JSON values by what they are called in errors.
CacheKey = dict[str, Any]

_WEIGHTS = "the guide's parameters and buffers"
_MODULES = "the guide's modules"


def cache_key(
    guide: FrozenGuide, sources: Sequence[Source], key: str | None, **options: Any
) -> CacheKey:
    """The key of a guide's activations; `options` are JSON values that belong to it."""
    model = unwrapped(guide.model)
    return {
        **options,
        "layers": sorted(labels(sources, key)),
        "guide_transform": None if guide.transform is None else _name(guide.transform),
        "autocast": _autocast(guide),
        "key": key,
        # The addresses of functions in it differ from process to process.
        _MODULES: hashlib.sha256(re.sub(r" at 0x\w+", "", repr(model)).encode()).hexdigest(),
        _WEIGHTS: digest([*model.named_parameters(), *model.named_buffers()]),
    }


def fingerprint(guide: FrozenGuide, sources: Sequence[Source]) -> Hashable:
    """What changes whenever :func:`cache_key` may; cheap enough for every step."""
    versions = tuple((t.data_ptr(), t.dtype, version_of(t)) for t in guide.tensors())
    return tuple(sources), _autocast(guide), versions


def difference(kept: CacheKey, now: CacheKey) -> str:
    """In which values two keys differ; empty if in none."""
    found = []
    for name in {**kept, **now}:
        there, here = kept.get(name), now.get(name)
        if there != here:
            hashed = name in (_WEIGHTS, _MODULES)
            found.append(f"other {name}" if hashed else f"{name} {there!r} instead of {here!r}")
    return "; ".join(found)


def labels(sources: Sequence[Source], key: str | None) -> list[str]:
    """A name for each layer that is the same in every process.

    Raises
    ------
    ValueError
        For an `extract` without a name, unless `key` speaks for it.
    """
    seen: Counter[str] = Counter()
    found = []
    for source in sources:
        label = source.name
        if source.extract is not None:
            label += f" by {_extract_name(source, source.extract, key)}"
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return found


def _extract_name(source: Source, extract: Extract, key: str | None) -> str:
    name = _name(extract)
    # Of a bound method the object is not in the name.
    owner = getattr(extract, "__self__", None)
    is_function = hasattr(extract, "__qualname__") and isinstance(
        owner, (type, ModuleType, type(None))
    )
    if key is None and ("<" in name or not is_function):
        raise ValueError(
            f"guide_cache cannot tell the `extract` of guide layer {source.name!r} from another "
            f"one: {name} has no name of its own. Use a function of a module, or name what it "
            "does with GuideCache(..., key=...)"
        )
    return name


def _name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _autocast(guide: FrozenGuide) -> str | None:
    """The type in which the guide's products are computed, if autocast says so."""
    device = (device_of(guide.model) or torch.device("cpu")).type
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, types, shapes and values."""
    hashed = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        # A tensor is no buffer without numpy; one without values may have no address.
        if values.nbytes:
            hashed.update((ctypes.c_char * values.nbytes).from_address(values.data_ptr()))
    return hashed.hexdigest()
