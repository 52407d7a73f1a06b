"""Whether two networks are wrong on the same samples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide.experiments.harness.statistics import mean_and_error

__all__ = ["consistency_of_groups", "error_consistency", "packed", "unpacked"]


def error_consistency(a: Tensor, b: Tensor) -> float | None:
    """Cohen's kappa of two networks' being right, over the samples of a test set.

    ``(c - e) / (1 - e)``, where c is the share of samples on which both are right or both are
    wrong, and ``e = p q + (1 - p)(1 - q)`` what it would be if networks of accuracies p and q
    erred independently: 1 for the same errors, 0 for independent ones (Geirhos, Meding and
    Wichmann 2020, arXiv 2006.16736, equations 1 to 3).

    Parameters
    ----------
    a, b : Tensor
        (n,) bool, True where the prediction is right.

    Returns
    -------
    float or None
        None where it is 0 / 0: both are right, or both wrong, on every sample.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.harness.consistency import error_consistency
    >>> a = torch.tensor([True, True, False, False])
    >>> error_consistency(a, a), error_consistency(a, ~a)
    (1.0, -1.0)
    """
    p, q = (x.double().mean().item() for x in (a, b))
    observed = (a == b).double().mean().item()
    expected = p * q + (1 - p) * (1 - q)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def packed(flags: Tensor) -> str:
    """Flags (n,) in a JSON string: their number and their bits in base64."""
    bits = flags.to(torch.uint8).tolist()
    number = int("".join(map(str, bits)) or "0", 2)
    content = base64.b64encode(number.to_bytes((len(bits) + 7) // 8, "big")).decode()
    return f"{len(bits)}:{content}"


def unpacked(text: str) -> Tensor:
    """The inverse of :func:`packed`.

    Examples
    --------
    >>> import torch
    >>> from pyguide.experiments.harness.consistency import packed, unpacked
    >>> unpacked(packed(torch.tensor([True, False, False]))).tolist()
    [True, False, False]
    """
    count, _, content = text.partition(":")
    number = int.from_bytes(base64.b64decode(content), "big")
    bits = format(number, f"0{count}b") if int(count) else ""
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool)


def consistency_of_groups(groups: Mapping[str, Mapping[int, str]]) -> list[dict[str, Any]]:
    """Error consistency within and between groups of networks that are told apart by seed.

    Parameters
    ----------
    groups : dict
        By group and seed, which test samples are right (:func:`packed`).

    Returns
    -------
    list of dict
        A row for each two groups, and for each group with itself: ``first``, ``second``,
        ``mean``, ``standard_error`` over ``pairs`` pairs of networks. Within a group and
        between two, networks of different seeds are compared; ``same_seed`` has the mean over
        networks of the same seed, which share their initialisation, or a guide and its target.
        Groups without a pair are left out.
    """
    flags = {
        name: {seed: unpacked(text) for seed, text in runs.items()} for name, runs in groups.items()
    }
    names = list(flags)
    rows = [
        _row(first, second, flags[first], flags[second])
        for i, first in enumerate(names)
        for second in names[i:]
    ]
    return [row for row in rows if row is not None]


def _row(
    first: str, second: str, a: Mapping[int, Tensor], b: Mapping[int, Tensor]
) -> dict[str, Any] | None:
    within = first == second
    others = _values(
        error_consistency(a[i], b[j]) for i in a for j in b if (i < j if within else i != j)
    )
    same = [] if within else _values(error_consistency(a[i], b[i]) for i in a if i in b)
    if not others and not same:
        return None
    mean, error = mean_and_error(others) if others else (None, None)
    return {
        "first": first,
        "second": second,
        "mean": mean,
        "standard_error": error,
        "pairs": len(others),
        "same_seed": mean_and_error(same)[0] if same else None,
    }


def _values(found: Any) -> Sequence[float]:
    return [value for value in found if value is not None]
