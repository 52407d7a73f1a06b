"""Sparse random projection of a layer's features to fewer."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pyguide.ops.dispatch import has_native_backend
from pyguide.ops.first_derivative import first_derivative_only, needs_gradient
from pyguide.ops.library import register

__all__ = ["johnson_lindenstrauss_dimension", "random_projection", "terms_of_column"]


def johnson_lindenstrauss_dimension(samples: int, distortion: float) -> int:
    """So many dimensions hold n samples with all squared distances within ``1 +- distortion``.

    ``k = ceil(4 ln n / (eps^2 / 2 - eps^3 / 3))``; Dasgupta & Gupta 2003, theorem 2.1.
    """
    return math.ceil(4 * math.log(samples) / (distortion**2 / 2 - distortion**3 / 3))


def terms_of_column(width: int) -> int:
    """How many of so many features each projected one sums."""
    return round(math.sqrt(width))


class _Entries(NamedTuple):
    """The non-zero entries of a d x k matrix, by column and by row."""

    rows: Tensor  # (k, m): which features each projected one sums
    weights: Tensor  # (k, m) float64
    columns: Tensor  # (k m,): which projected features each feature goes to
    starts: Tensor  # (d,): where those of each feature start
    weights_by_row: Tensor  # (k m,)


@functools.lru_cache(maxsize=8)  # 36 MB for 65536 features at n = 256
@torch.inference_mode(False)  # entries of a forward pass serve a later backward pass
def _entries(width: int, features: int, seed: int, device: torch.device) -> _Entries:
    generator = torch.Generator().manual_seed(seed)
    terms = terms_of_column(width)
    rows = torch.randint(width, (features, terms), generator=generator)
    signs = 2.0 * torch.randint(2, (features, terms), generator=generator, dtype=torch.float64) - 1
    weights = signs * math.sqrt(width / (terms * features))
    order = rows.flatten().argsort(stable=True)
    counts = rows.flatten().bincount(minlength=width)
    by_row = order // terms, counts.cumsum(0) - counts, weights.flatten()[order]
    return _Entries(*(t.to(device) for t in (rows, weights, *by_row)))


def _forward(x: Tensor, features: int, seed: int) -> Tensor:
    # Samples last, so that a sum over features adds contiguous rows.
    by_feature = x.reshape(x.size(0), -1).T.double().contiguous()
    entries = _entries(by_feature.size(0), features, seed, x.device)
    projected = embedding_bag(
        entries.rows, by_feature, per_sample_weights=entries.weights, mode="sum"
    )
    return projected.T.contiguous()


def _fake_forward(x: Tensor, features: int, seed: int) -> Tensor:
    return x.new_empty((x.size(0), features), dtype=torch.float64)


def _backward(grad: Tensor, x: Tensor, seed: int) -> Tensor:
    entries = _entries(x.numel() // x.size(0), grad.size(1), seed, x.device)
    by_feature = embedding_bag(
        entries.columns,
        grad.T.contiguous(),
        entries.starts,
        per_sample_weights=entries.weights_by_row,
        mode="sum",
    )
    return torch.empty_like(x).copy_(by_feature.T.reshape(x.shape))


def _fake_backward(grad: Tensor, x: Tensor, seed: int) -> Tensor:
    return torch.empty_like(x)


_project = register(
    "random_projection(Tensor x, int features, int seed) -> Tensor",
    implementation=_forward,
    fake=_fake_forward,
)
_project_backward = register(
    "random_projection_backward(Tensor grad, Tensor x, int seed) -> Tensor",
    implementation=_backward,
    fake=_fake_backward,
)


class _RandomProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, features: int, seed: int) -> Tensor:
        ctx.seed = seed
        ctx.save_for_backward(x)
        return _project(x, features, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        (computed,) = first_derivative_only([_project_backward(grad, x, ctx.seed)], grad, x)
        return computed, None, None


def random_projection(x: Tensor, features: int, seed: int) -> Tensor:
    """``X R`` of an (n, ...) layer of d features: (n, features) float64, differentiable once.

    Each column of R has ``sqrt(d)`` entries at random places with random signs (the density of
    the very sparse projections of Li, Hastie & Church 2006), scaled so that ``R R^T`` is the
    identity in expectation. R depends on d, ``features`` and ``seed`` only, and is kept.
    """
    if not has_native_backend(x.device):
        return _forward(x, features, seed)
    if needs_gradient([x]):
        result: Tensor = _RandomProjection.apply(x, features, seed)
        return result
    return _project(x, features, seed)  # see align in pyguide/ops/cka_operators.py
