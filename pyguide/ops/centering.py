"""Centrings of stacks of symmetric matrices: the orthogonal projections under alignments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CENTERINGS", "Centered", "center_"]

#: "h": H S H. "u": U-centring (Székely & Rizzo 2014). "off_diagonal": zero diagonal, and the
#: mean of the other entries subtracted from them. "entries": the mean of all entries subtracted.
CENTERINGS = ("h", "u", "off_diagonal", "entries")


class Centered(NamedTuple):
    """What a layer's degeneracy is judged by, as the statistics of linear CKA: (B,) each."""

    scale: Tensor  # tr(H S H), or ||S|| where nothing but a mean is subtracted
    norm_squared: Tensor  # ||S°||^2


def center_(s: Tensor, centering: str) -> Centered:
    """Centre symmetric matrices (B, n, n), float64, in place."""
    n = s.size(1)
    diagonal = s.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(dim=1)
    if centering in ("u", "off_diagonal"):
        diagonal.zero_()
    rows = s.sum(dim=2)
    total = rows.sum(dim=1)
    if centering == "h":
        means = rows / n - (total / (2 * n * n))[:, None]
    elif centering == "u":
        means = rows / (n - 2) - (total / (2 * (n - 1) * (n - 2)))[:, None]
    else:
        entries = n * (n - 1) if centering == "off_diagonal" else n * n
        means = (total / (2 * entries))[:, None].expand(-1, n)
    s.sub_(means[:, :, None]).sub_(means[:, None, :])
    if centering in ("u", "off_diagonal"):
        diagonal.zero_()
    norm_squared = torch.linalg.vector_norm(s, dim=(1, 2)).square()
    if centering == "h":
        return Centered(trace - total / n, norm_squared)
    if centering == "u":
        return Centered(trace - (trace + total) / n, norm_squared)
    return Centered((norm_squared + total.square() / entries).sqrt(), norm_squared)
