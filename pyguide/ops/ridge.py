"""How well ridge regression predicts one layer from another, from their Gram matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.ops.double_grams import double_grams
from pyguide.ops.paired_layers import PairedLayers

__all__ = ["ridge_scores"]


class _Split(NamedTuple):
    """Blocks of a Gram matrix: samples that fit and samples that are scored."""

    fit: Tensor  # (m, m)
    cross: Tensor  # (n - m, m)
    squares: Tensor  # (n - m,), the squared norms of scored samples
    constant: Tensor  # bool, whether the layer does not vary over the samples that fit


def _split(gram: Tensor, m: int) -> _Split:
    """The blocks, centred by the mean of the first m samples."""
    rows = gram[:, :m].mean(dim=1, keepdim=True)
    mean = rows[:m].mean()
    columns = rows[:m].mT - mean
    fit = gram[:m, :m] - rows[:m] - columns
    cross = gram[m:, :m] - rows[m:] - columns
    norms = gram.diagonal()[m:]
    squares = norms - 2 * rows[m:, 0] + mean
    eps = 16 * torch.finfo(gram.dtype).eps
    at_mean = squares.detach() <= eps * (norms + mean).detach()
    cross = torch.where(at_mean[:, None], 0.0, cross)
    squares = torch.where(at_mean, 0.0, squares)
    constant = fit.detach().trace() <= eps * gram.detach().trace()
    return _Split(fit, cross, squares, constant)


def _smoother(split: _Split, penalty: float) -> Tensor:
    """``W = K_cross (K_fit + penalty I)^-1``: predictions are W Y_fit."""
    identity = torch.eye(split.fit.size(0), dtype=split.fit.dtype, device=split.fit.device)
    # Centred rows sum to zero, so a constant changes no prediction; without it the matrix of a
    # large layer is singular to rounding.
    m = split.fit.size(0)
    constant = split.fit.trace() / m**2
    factor, failed = torch.linalg.cholesky_ex(split.fit + penalty * identity + constant)
    smoother = torch.cholesky_solve(split.cross.mT, factor).mT
    return torch.where(failed == 0, smoother, torch.nan)


def _score(w: Tensor, response: _Split) -> Tensor:
    """Mean cosine of prediction and response over the scored samples.

    With ``L = Y Y^T`` no feature of Y is needed: ``<yhat_i, y_i> = (W L_fit,scored)_ii``,
    ``|yhat_i|^2 = (W L_fit W^T)_ii``, ``|y_i|^2 = L_ii``.
    """
    products = (w * response.cross).sum(dim=1)
    # Rounding may leave less than zero.
    predicted = ((w @ response.fit) * w).sum(dim=1).clamp(min=0)
    norms = predicted * response.squares
    undefined = norms == 0  # a zero vector has no direction: its cosine is 0, without gradient
    norms = torch.where(undefined, 1.0, norms).sqrt()
    return torch.where(undefined, 0.0, products / norms).mean()


def ridge_scores(pairs: PairedLayers, penalty: float) -> tuple[Tensor, Tensor]:
    """Mean cosines of prediction and response, (P,) float64, and degenerate flags, (P,) bool."""
    splits = [_split(gram, gram.size(0) // 2) for gram in double_grams(pairs.layers)]
    smoothers = {i: _smoother(splits[i], penalty) for i in dict.fromkeys(pairs.left)}
    of_pairs = zip(pairs.left, pairs.right, strict=True)
    scores = pairs.stack([_score(smoothers[i], splits[j]) for i, j in of_pairs], torch.float64)
    flags = pairs.either([split.constant for split in splits]) & ~scores.detach().isnan()
    return torch.where(flags, 0.0, scores), flags
