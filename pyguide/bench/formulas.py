"""The formulas that users could write or find instead of pyguide, in plain torch.

``xs`` and ``ys`` are lists of (n, d) layers, compared pair by pair. The losses are sums of
distances, ``1 - CKA`` but where the name says another, differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyguide.reference import u_center

__all__ = [
    "apply",
    "debiased_matrix",
    "eager_loss",
    "eager_loss_16bit",
    "eager_loss_batched",
    "eager_loss_feature_space",
    "eager_rbf_loss",
    "eager_rsa_loss",
    "full_gram",
    "gram",
    "lightly_loss",
    "official_loss",
]


def gram(x: Tensor) -> Tensor:
    """Centred Gram matrix in float32: centre the features, then one product."""
    x = x.float()
    x = x - x.mean(dim=0)
    return x @ x.T


def full_gram(x: Tensor) -> Tensor:
    """``X X^T`` by one product, in float32 where torch can."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, x.T, out_dtype=torch.float32)
    return torch.mm(x, x.T)


def _distance(k: Tensor, m: Tensor) -> Tensor:
    """``1 - CKA`` of centred Gram matrices, also of a batch of them.

    By sums, since ``Tensor.norm`` in float32 made the loss 2e-3 off at n = 4096.
    """
    km, kk, mm = ((a * b).sum(dim=(-2, -1)) for a, b in ((k, m), (k, k), (m, m)))
    return 1 - km / (kk.sqrt() * mm.sqrt())


def eager_loss(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """What a careful user writes: one Gram a layer, of centred features."""
    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        loss = loss + _distance(gram(x), gram(y))
    return loss


def eager_loss_16bit(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """:func:`eager_loss` with products in the layers' own 16-bit type."""
    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        loss = loss + _distance((x @ x.T).float(), (y @ y.T).float())
    return loss


def eager_loss_feature_space(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The same from d x d products: ``<Kc, Lc> = ||Y^T X||^2`` of centred features."""
    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        xy, xx, yy = (k.square().sum() for k in (y.T @ x, x.T @ x, y.T @ y))
        cka = xy / (xx.sqrt() * yy.sqrt())
        loss = loss + 1 - cka
    return loss


def eager_rbf_loss(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """RBF CKA: squared distances from one Gram a layer, of centred features.

    torch.median takes the lower of the two in the middle, which costs least and moves the value
    by less than 1e-3.
    """

    def kernel(x: Tensor) -> Tensor:
        k = gram(x)
        squares = k.diagonal()
        d = (squares[:, None] + squares - 2 * k).clamp(min=0)
        k = torch.exp(-d / (2 * d.detach().median()))
        rows = k.mean(dim=0)
        return k - rows - rows[:, None] + rows.mean()

    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        loss = loss + _distance(kernel(x), kernel(y))
    return loss


def eager_rsa_loss(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """RSA: one product of normalised samples a layer, correlated off the diagonal."""
    n = len(xs[0])
    other = 1 - torch.eye(n, device=xs[0].device)

    def rdm(x: Tensor) -> Tensor:
        x = torch.nn.functional.normalize(x.float(), dim=1)
        r = (1 - x @ x.T) * other
        return (r - r.sum() / (n * (n - 1))) * other

    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        loss = loss + _distance(rdm(x), rdm(y))
    return loss


def eager_loss_batched(x: Tensor, y: Tensor) -> Tensor:
    """:func:`eager_loss` of every token of (n, T, d) layers, with batched products."""
    x, y = (x - x.mean(dim=0)).transpose(0, 1), (y - y.mean(dim=0)).transpose(0, 1)
    return _distance(x @ x.mT, y @ y.mT).sum()


def lightly_loss(x: Tensor, y: Tensor) -> Tensor:
    """``PatchKernelAlignmentLoss`` of lightly 1.6 over (n, T, d) layers, a token an image.

    Its mean over the images is multiplied by their number.
    """
    student, teacher = x.transpose(0, 1), y.transpose(0, 1).detach()
    valid = student.new_ones(student.shape[:2])

    def double_center(kernel: Tensor) -> Tensor:
        n = valid.sum(dim=-1).clamp(min=1.0)
        rows = (kernel * valid[:, None, :]).sum(dim=-1) / n[:, None]
        columns = (kernel * valid[:, :, None]).sum(dim=1) / n[:, None]
        total = (kernel * valid[:, None, :] * valid[:, :, None]).sum(dim=(1, 2)) / (n * n)
        centered = kernel - rows[:, :, None] - columns[:, None, :] + total[:, None, None]
        return centered * valid[:, None, :] * valid[:, :, None]

    k = double_center(student @ student.mT)
    m = double_center(teacher @ teacher.mT)
    xy, xx, yy = ((a * b).sum(dim=(1, 2)) for a, b in ((k, m), (k, k), (m, m)))
    cka = xy / (xx.clamp_min(1e-6).sqrt() * yy.clamp_min(1e-6).sqrt())
    return (1 - cka).mean() * len(cka)


def official_loss(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The way of the paper's code: six Gram matrices a pair, centred by products with H."""

    def center(k: Tensor) -> Tensor:
        n = k.size(0)
        h = torch.eye(n, device=k.device) - torch.ones(n, n, device=k.device) / n
        return h @ k @ h

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        return (center(x @ x.T) * center(y @ y.T)).sum()

    loss = xs[0].new_zeros((), dtype=torch.float32)
    for x, y in zip(xs, ys, strict=True):
        x, y = x.float(), y.float()
        loss = loss + 1 - hsic(x, y) / torch.sqrt(hsic(x, x) * hsic(y, y))
    return loss


def debiased_matrix(xs: list[Tensor]) -> Tensor:
    """Debiased CKA of all layers with each other: U-centred Grams, then one product."""
    grams = torch.stack([u_center(gram(x)).flatten() for x in xs])
    grams = grams / grams.square().sum(dim=1, keepdim=True).sqrt()
    return grams @ grams.T


def apply(coefficients: Tensor, xs: list[Tensor]) -> list[Tensor]:
    """``A (X - mean)`` of every layer, in its dtype."""
    products = []
    for a, x in zip(coefficients, xs, strict=True):
        centered = x.float() - x.float().mean(dim=0)
        products.append((a @ centered).to(x.dtype))
    return products
