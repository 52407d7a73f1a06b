"""How well ridge regression predicts one layer from another, from their Gram matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.ops.paired_grams import PairedGrams

__all__ = ["ridge_scores"]


class _Split(NamedTuple):
    """Blocks of L Gram matrices: samples that fit and samples that are scored."""

    fit: Tensor  # (L, m, m)
    cross: Tensor  # (L, n - m, m)
    squares: Tensor  # (L, n - m), the squared norms of scored samples


def _split(grams: Tensor, m: int) -> _Split:
    """The blocks, centred by the mean of the first m samples."""
    rows = grams[:, :, :m].mean(dim=2, keepdim=True)
    grams = grams - rows - rows.mT + rows[:, :m].mean(dim=1, keepdim=True)
    squares = grams.diagonal(dim1=1, dim2=2)[:, m:]
    return _Split(grams[:, :m, :m], grams[:, m:, :m], squares)


def _without_variation(grams: Tensor, split: _Split) -> Tensor:
    """Which layers are constant over the samples that fit, (L,) bool."""
    fitted, total = (k.detach().diagonal(dim1=1, dim2=2).sum(dim=1) for k in (split.fit, grams))
    return fitted <= 16 * torch.finfo(grams.dtype).eps * total


def _smoothers(split: _Split, layers: list[int], penalty: float) -> dict[int, Tensor]:
    """``W = K_cross (K_fit + penalty I)^-1`` of some layers: predictions are W Y_fit."""
    kernels, cross = (torch.stack([k[i] for i in layers]) for k in (split.fit, split.cross))
    identity = torch.eye(kernels.size(1), dtype=kernels.dtype, device=kernels.device)
    factors, failed = torch.linalg.cholesky_ex(kernels + penalty * identity)
    smoothers = torch.cholesky_solve(cross.mT, factors).mT
    smoothers = torch.where((failed == 0)[:, None, None], smoothers, torch.nan)
    return dict(zip(layers, smoothers.unbind(), strict=True))


def ridge_scores(pairs: PairedGrams, penalty: float) -> tuple[Tensor, Tensor]:
    """Mean cosines of prediction and response, (P,) float64, and degenerate flags, (P,) bool.

    With ``L = Y Y^T`` no feature of Y is needed: ``<yhat_i, y_i> = (W L_fit,scored)_ii``,
    ``|yhat_i|^2 = (W L_fit W^T)_ii``, ``|y_i|^2 = L_ii``.
    """
    grams, left, right = pairs.grams, pairs.left, pairs.right
    if not left:
        return grams.new_zeros(0), grams.new_zeros(0, dtype=torch.bool)
    split = _split(grams, grams.size(1) // 2)
    smoothers = _smoothers(split, sorted(set(left)), penalty)
    w = torch.stack([smoothers[i] for i in left])
    fit, cross, squares = (torch.stack([k[j] for j in right]) for k in split)
    products = (w * cross).sum(dim=2)
    predicted = (w @ fit * w).sum(dim=2)
    # A zero vector has no direction: its cosine is 0, without gradient.
    undefined = (predicted <= 0) | (squares <= 0)
    norms = torch.where(undefined, 1.0, predicted * squares).sqrt()
    scores = torch.where(undefined, 0.0, products / norms).mean(dim=1)
    flags = pairs.either(_without_variation(grams, split)) & ~scores.detach().isnan()
    return torch.where(flags, 0.0, scores), flags
