"""Centred kernel alignment of many layer pairs, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.cka_operators import align
from pyguide.ops.contract import result_dtype, token_count
from pyguide.ops.dispatch import has_native_backend
from pyguide.ops.distinct import distinct_layers, no_values
from pyguide.ops.inputs import (
    check_layers,
    check_pairs,
    check_precision,
    check_tokens,
    integer_pairs,
)
from pyguide.ops.precision import precision_code
from pyguide.ops.routes import split_by_route

__all__ = ["CKALoss", "cka", "cka_matrix", "cka_pairs", "cka_pairs_and_flags"]

_REDUCTIONS = ("sum", "mean")


def _check_layers(
    debiased: bool, *groups: tuple[str, Sequence[Tensor]], per_token: bool = False
) -> None:
    check_layers(
        groups,
        min_samples=4 if debiased else 2,
        why=" for debiased CKA" if debiased else "",
    )
    if per_token:
        check_tokens(groups)


def cka_pairs_and_flags(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    debiased: bool = False,
    per_token: bool = False,
    precision: str | None = None,
    route: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`cka_pairs`, and which pairs have a degenerate layer: two of (P,), or of (P, T).

    ``route`` is ``"auto"`` (less work), ``"sample"`` (n x n Gram matrices) or ``"feature"``
    (d x d products); it changes the result only by rounding. What counts as rounding differs
    for float64 debiased CKA: in feature space ``||K°||^2`` is a difference of terms of size
    ``tr(Kc)^2``, so a layer is degenerate below ``2^-46 tr(Kc)^2`` already.
    """
    check_precision(precision)
    _check_layers(debiased, ("xs[]", xs), ("ys[]", ys), per_token=per_token)
    checked = check_pairs(pairs, len(xs), len(ys))
    return _checked_cka(xs, ys, checked, debiased, per_token, precision, route)


def _checked_cka(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: list[tuple[int, int]],
    debiased: bool,
    per_token: bool,
    precision: str | None,
    route: str = "auto",
) -> tuple[Tensor, Tensor]:
    dtype = result_dtype([*xs, *ys])
    if not pairs:
        return no_values(xs, ys, per_token)
    if not has_native_backend(xs[0].device):
        return reference.cka_pairs_and_flags(
            xs, ys, pairs=pairs, debiased=debiased, per_token=per_token
        )

    layers, left, right = distinct_layers(xs, ys, pairs)
    indices = list(zip(left, right, strict=True))
    parts = split_by_route(layers, indices, route, debiased, token_count(layers, per_token))
    options = (debiased, per_token, precision_code(precision, xs[0].device))
    results = [
        align(p.in_feature_space, p.pairs, options, [layers[i] for i in p.layers]) for p in parts
    ]
    if per_token:
        results = [
            (v.view(len(p.pairs), -1), f.view(len(p.pairs), -1))
            for p, (v, f) in zip(parts, results, strict=True)
        ]
    if len(results) == 1:
        values, flags = results[0]
        return values.to(dtype), flags
    # Rows are gathered by stacking them: an index would be copied to the device, and wait for it.
    rows: list[tuple[Tensor, Tensor]] = [results[0]] * len(pairs)
    for part, (values, flags) in zip(parts, results, strict=True):
        found = zip(values.to(dtype).unbind(), flags.unbind(), strict=True)
        for position, row in zip(part.positions, found, strict=True):
            rows[position] = row
    return torch.stack([v for v, _ in rows]), torch.stack([f for _, f in rows])


def cka_pairs(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    debiased: bool = False,
    per_token: bool = False,
    precision: str | None = None,
) -> Tensor:
    """Linear CKA of many pairs of layers in one native call.

    With ``K = X X^T`` and ``L = Y Y^T`` over the same n samples::

        CKA = <K°, L°> / (||K°|| ||L°||)

    where ``°`` is ``H K H`` (biased; Kornblith et al. 2019) or U-centring (debiased; the
    HSIC estimator of Song et al. 2012, Székely & Rizzo 2014). CKA is invariant to
    orthogonal maps, isotropic scaling, shifts and a joint permutation of the samples.

    Biased CKA is near 1 for independent layers when d is much larger than n (0.97 at n = 16,
    d = 512) and always 1 at n = 2; prefer ``debiased=True`` for small batches. Debiased CKA
    lies in [-1, 1]. Nothing is clamped.

    Each distinct tensor's Gram matrix is computed once, however many pairs use it, and a
    layer in several pairs gets its gradient from one product.

    Parameters
    ----------
    xs, ys : sequence of Tensor, each (n, ...)
        Every axis but the first is flattened. float64, float32, bfloat16 or float16; dtype
        and feature axes may differ from layer to layer, n and the device may not.
    pairs : sequence of (int, int), optional
        Indices into xs and ys; ``zip(xs, ys)`` by default. A pair given twice counts twice.
    debiased : bool
        The debiased estimator; needs n >= 4.
    per_token : bool
        The layers are (n, T, ...) with one T, and every token is compared on its own: one CKA
        for each pair and token.
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features: as three TF32 products (float32's accuracy), as TF32
        or as bfloat16; sums are float32 or float64 throughout. By default torch's float32 matmul
        setting when the function is called; a compiled function follows a later change between
        "highest" and the others, but not between "high" and "medium". Backward uses what forward
        used. float64, bfloat16 and float16 features are multiplied in their own type, and CPUs
        always compute at "highest".

    Returns
    -------
    Tensor, (P,), with per_token (P, T)
        float64 if every input is float64, else float32. Differentiable once in every input.
        A pair with a degenerate layer (constant features, or for the debiased estimator a
        Gram matrix without off-diagonal signal) is 0 with zero gradient; NaN or infinity in
        an input gives NaN. There is no absolute epsilon, but float32 products of features
        smaller than about 1e-18 or larger than 1e17 leave its range: rescale those. On GPUs so
        do float16 features of which two samples lie more than 65504 apart.

    Raises
    ------
    TypeError, ValueError, IndexError
        Naming the argument, before any work: different n, n < 2 (debiased: n < 4), integer
        or complex dtype, mixed devices, empty features, sparse tensors, a pair out of range;
        per_token with layers that have no or different numbers of tokens.
    RuntimeError
        Under forward-mode AD, torch.func.grad, jvp or vmap: :mod:`pyguide.reference` has these.

    Examples
    --------
    >>> import torch, pyguide
    >>> x = torch.eye(4)
    >>> pyguide.cka_pairs([x, x], [2 * x, x[:, :2]])
    tensor([1.0000, 0.7746])
    >>> tokens = torch.stack([x, x[:, [0, 1, 0, 1]]], dim=1)  # (4, 2, 4)
    >>> pyguide.cka_pairs([tokens], [tokens.flip(1)], per_token=True)
    tensor([[0.7746, 0.7746]])
    """
    return cka_pairs_and_flags(
        xs, ys, pairs=pairs, debiased=debiased, per_token=per_token, precision=precision
    )[0]


def cka(
    x: Tensor,
    y: Tensor,
    *,
    debiased: bool = False,
    per_token: bool = False,
    precision: str | None = None,
) -> Tensor:
    """Linear CKA of two layers; see :func:`cka_pairs`.

    Parameters
    ----------
    x, y : Tensor, (n, ...), with per_token (n, T, ...)
    debiased : bool
        The debiased estimator; needs n >= 4.
    per_token : bool
        One CKA for each of T tokens.
    precision : {"highest", "high", "medium"}, optional
        See :func:`cka_pairs`.

    Returns
    -------
    Tensor, (), with per_token (T,)

    Examples
    --------
    >>> import torch, pyguide
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> pyguide.cka(x, -5 * x + 1)
    tensor(1.)
    """
    check_precision(precision)
    _check_layers(debiased, ("x", [x]), ("y", [y]), per_token=per_token)
    return _checked_cka([x], [y], [(0, 0)], debiased, per_token, precision)[0].squeeze(0)


def cka_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None = None,
    *,
    debiased: bool = False,
    precision: str | None = None,
) -> Tensor:
    """Linear CKA of every layer of xs with every layer of ys; see :func:`cka_pairs`.

    Parameters
    ----------
    xs, ys : sequence of Tensor, each (n, ...)
        ``ys`` is ``xs`` by default.
    debiased : bool
        The debiased estimator; needs n >= 4.
    precision : {"highest", "high", "medium"}, optional
        See :func:`cka_pairs`.

    Returns
    -------
    Tensor, (len(xs), len(ys))

    Examples
    --------
    >>> import torch, pyguide
    >>> x = torch.eye(4)
    >>> pyguide.cka_matrix([x, x[:, :2]])
    tensor([[1.0000, 0.7746],
            [0.7746, 1.0000]])
    """
    ys = xs if ys is None else ys
    check_precision(precision)
    _check_layers(debiased, ("xs[]", xs), ("ys[]", ys))
    pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys))]
    return _checked_cka(xs, ys, pairs, debiased, False, precision)[0].reshape(len(xs), len(ys))


class CKALoss(torch.nn.Module):
    """``1 - CKA`` over pairs of layers, summed or averaged; see :func:`cka_pairs`.

    Parameters
    ----------
    pairs : sequence of (int, int), optional
        Indices into xs and ys; ``zip(xs, ys)`` by default.
    debiased : bool
        The debiased estimator; needs n >= 4.
    per_token : bool
        Compare every token of (n, T, ...) layers on its own.
    reduction : {"sum", "mean"}
        Over the pairs and tokens. The paper of guidance sums.
    precision : {"highest", "high", "medium"}, optional
        See :func:`cka_pairs`.

    Examples
    --------
    >>> import torch, pyguide
    >>> loss = pyguide.CKALoss(reduction="mean")
    >>> x = torch.eye(4, requires_grad=True)
    >>> loss([x], [torch.eye(4)[:, :2]]).item()
    0.22540...
    """

    def __init__(
        self,
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        debiased: bool = False,
        per_token: bool = False,
        reduction: str = "sum",
        precision: str | None = None,
    ):
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        check_precision(precision)
        self.pairs = None if pairs is None else integer_pairs(pairs)
        self.debiased = debiased
        self.per_token = per_token
        self.reduction = reduction
        self.precision = precision

    def forward(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Loss of layers xs against layers ys, each (n, ...): a scalar."""
        distances = 1 - cka_pairs(
            xs,
            ys,
            pairs=self.pairs,
            debiased=self.debiased,
            per_token=self.per_token,
            precision=self.precision,
        )
        if self.reduction == "sum" or not distances.numel():
            return distances.sum()
        return distances.mean()

    def extra_repr(self) -> str:
        return (
            f"pairs={self.pairs}, debiased={self.debiased}, per_token={self.per_token}, "
            f"reduction={self.reduction!r}, precision={self.precision!r}"
        )
