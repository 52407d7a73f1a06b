"""Gram matrices of a whole data set, of which those of its batches are parts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyguide.ops.centering import center_

__all__ = ["batch_gram", "fill_gram"]

# Of the float64 copies of two blocks of samples: 128 MiB each.
_NUMBERS_AT_ONCE = 1 << 24


def fill_gram(out: Tensor, x: Tensor, device: torch.device) -> None:
    """``K = (X - m)(X - m)^T`` for N samples, m their mean, block by block.

    Whatever m is, centring the matrix of a batch gives that of the batch. With the mean of all
    samples it keeps its digits also where features are far from zero.

    Parameters
    ----------
    out : Tensor, (N, N)
        Where K goes.
    x : Tensor, (N, ...)
        The samples; they may be a mapped file.
    device : torch.device
        Where products are computed, in float64.
    """
    mean = _mean(x, device)
    for rows, block in _blocks(x, device):
        block -= mean
        for columns, other in _blocks(x[: rows.stop], device):
            product = (block @ other.sub_(mean).mT).to(out.device, out.dtype)
            out[rows, columns] = product
            out[columns, rows] = product.mT


def batch_gram(gram: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """``H X X^T H``, (n, n), of the samples `ids` from the matrix of all.

    It is 0 where the samples differ by less than the rounding of their products.
    """
    k = gram[ids[:, None], ids].double()
    trace = k.diagonal().sum()
    scale, _ = center_(k[None], "h")
    k *= scale > 16 * torch.finfo(gram.dtype).eps * trace
    return k.to(dtype)


def _mean(x: Tensor, device: torch.device) -> Tensor:
    # A sample with NaN or infinity must not be in the matrix of a batch without it.
    sums = [block.nan_to_num_(0.0, 0.0, 0.0).sum(dim=0) for _, block in _blocks(x, device)]
    return torch.stack(sums).sum(dim=0) / len(x)


def _blocks(x: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of samples as (b, d) float64 copies, and which they are."""
    x = x.reshape(len(x), -1)
    size = max(1, _NUMBERS_AT_ONCE // max(1, x.size(1)))
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, x[rows].to(device, torch.float64, copy=True)
