"""Alignment of functions of the distances between samples: RBF CKA and RSA.

From the H-centred Gram matrix of a layer come the squared distances between its samples, and from
these a matrix S (pyguide/ops/dissimilarities.py). Pairs of them are aligned like Gram matrices,
``<S°, T°> / (||S°|| ||T°||)``, with a centring of pyguide/ops/centering.py. Gram matrices, inner
products, coefficients and the product with X are the native kernels'; S is float64 until it is
centred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyguide import reference
from pyguide.ops.centering import center_
from pyguide.ops.contract import Alignment, result_dtype, token_count
from pyguide.ops.dispatch import backend_of, has_native_backend
from pyguide.ops.dissimilarities import Dissimilarity, dissimilarity, squared_distances
from pyguide.ops.distinct import distinct_layers, no_values
from pyguide.ops.first_derivative import by_input, needs_gradient
from pyguide.ops.inputs import check_layers, check_pairs, check_precision, check_tokens
from pyguide.ops.library import register
from pyguide.ops.precision import precision_code

__all__ = ["Options", "fake_saved", "laplacians", "pairwise_alignment", "similarities"]

# Entries of matrices that are float64 at a time: 8 MiB, so that they stay in a CPU's cache.
_ENTRIES_AT_ONCE = 1 << 20
_ENTRIES_AT_ONCE_ON_GPUS = 1 << 26


class Options(NamedTuple):
    """What is aligned, as the operators take it."""

    function: str  # "rbf", "euclidean" or "cosine"
    parameters: tuple[float, ...]  # of the function
    centering: str


def _forward(
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    function: str,
    parameters: list[float],
    centering: str,
    per_token: bool,
    precision: int,
    differentiable: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    backend = backend_of(layers[0].device)
    tokens = token_count(layers, per_token)
    grams = backend.gram(layers, center=True, per_token=per_token, precision=precision)
    f = dissimilarity(function, parameters)

    def state_of(d: Tensor, group: slice) -> Tensor:
        return f.state(d, layers[group], per_token)

    centered = torch.empty_like(grams) if differentiable else grams
    stats, state = similarities(grams, f, state_of, centering, tokens, out=centered)
    values, degenerate, *_ = backend.align(centered, stats, left, right, tokens)
    return values, degenerate, [grams, centered, stats, state] if differentiable else []


def similarities(
    grams: Tensor,
    f: Dissimilarity,
    state_of: Callable[[Tensor, slice], Tensor],
    centering: str,
    tokens: int,
    *,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Centred similarities of the samples, into `out`; their statistics and what `f` keeps.

    Parameters
    ----------
    grams, out : Tensor, (L T, n, n)
        Centred Gram matrices, and where S° goes, which may be the same memory.
    state_of : callable
        The state of `f` for the squared distances of a group of layers.
    """
    n = grams.size(1)
    stats_shape = backend_of(grams.device).stats_shape(len(grams), n)
    state = grams.new_empty((len(grams), f.state_size(n)), dtype=torch.float64)
    stats = grams.new_zeros(stats_shape, dtype=torch.float64)
    for group in _groups(len(grams) // tokens, tokens * n * n, grams.device):
        matrices = slice(group.start * tokens, group.stop * tokens)
        d = squared_distances(grams[matrices])
        state[matrices] = state_of(d, group)
        s, subtracted = f.of_(d, state[matrices])
        scale, norm_squared = center_(s, centering)
        totals = stats[matrices].flatten(1)
        totals[:, 0] = scale if subtracted is None else scale.maximum(subtracted)
        totals[:, 1] = norm_squared
        out[matrices] = s
    return stats, state


def _fake_forward(
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    function: str,
    parameters: list[float],
    centering: str,
    per_token: bool,
    precision: int,
    differentiable: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    results = len(left) * token_count(layers, per_token)
    values = layers[0].new_empty(results, dtype=torch.float64)
    degenerate = layers[0].new_empty(results, dtype=torch.bool)
    saved = fake_saved(layers, function, parameters, per_token) if differentiable else []
    return values, degenerate, saved


def fake_saved(
    layers: list[Tensor], function: str, parameters: Sequence[float], per_token: bool
) -> list[Tensor]:
    """Shapes of what a differentiable :func:`_forward` saves."""
    x, n = layers[0], layers[0].size(0)
    matrices = len(layers) * token_count(layers, per_token)
    stats_shape = backend_of(x.device).stats_shape(matrices, n)
    size = dissimilarity(function, parameters).state_size(n)
    return [
        x.new_empty((matrices, n, n), dtype=result_dtype(layers)),
        x.new_empty((matrices, n, n), dtype=result_dtype(layers)),
        x.new_empty(stats_shape, dtype=torch.float64),
        x.new_empty((matrices, size), dtype=torch.float64),
    ]


def _backward(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    saved: list[Tensor],
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    wanted: list[int],
    function: str,
    parameters: list[float],
    per_token: bool,
    precision: int,
) -> list[Tensor]:
    backend = backend_of(layers[0].device)
    tokens = token_count(layers, per_token)
    grads: list[Tensor] = []
    f = dissimilarity(function, parameters)
    for some, b, m in laplacians(grad, values, degenerate, saved, f, left, right, wanted, tokens):
        xs = [layers[w] for w in some]
        # The sum of the two terms is rounded once.
        multiplied = xs if m is None else [x if x.dtype.itemsize > 2 else x.float() for x in xs]
        outs = backend.apply(b, multiplied, shifted=True, per_token=per_token, precision=precision)
        if m is not None:
            for out, x, scales in zip(outs, multiplied, m.split(tokens), strict=True):
                _add_scaled_rows(out, x, scales, per_token)
        grads += [out.to(x.dtype) for out, x in zip(outs, xs, strict=True)]
    return grads


def laplacians(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    saved: list[Tensor],
    f: Dissimilarity,
    left: list[int],
    right: list[int],
    wanted: list[int],
    tokens: int,
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Some of the wanted layers at a time, B (L T, n, n) and m (L T, n) of their gradient.

    ``d(grad * values).sum() = <B, dK> / 2 + ...``: see pyguide/ops/dissimilarities.py.
    """
    grams, centered, stats, state = saved
    backend, n = backend_of(grams.device), grams.size(1)
    forward = Alignment(values, degenerate, centered, stats)
    for group in _groups(len(wanted), tokens * n * n, grams.device):
        some = wanted[group]
        a = backend.coefficients(grad, forward, left, right, some, tokens).double()
        d = squared_distances(_matrices_of(grams, some, tokens))
        weights, m = f.weigh_(a, d, _matrices_of(state, some, tokens))
        weights.diagonal(dim1=1, dim2=2).zero_()
        rows = weights.sum(dim=2)
        b = weights.mul_(-2)
        b.diagonal(dim1=1, dim2=2).copy_(2 * rows)
        yield some, b.to(grams.dtype), m


def _fake_backward(
    grad: Tensor,
    values: Tensor,
    degenerate: Tensor,
    saved: list[Tensor],
    layers: list[Tensor],
    left: list[int],
    right: list[int],
    wanted: list[int],
    *_: Any,
) -> list[Tensor]:
    return [torch.empty_like(layers[w]) for w in wanted]


def _add_scaled_rows(out: Tensor, x: Tensor, m: Tensor, per_token: bool) -> None:
    """``out += diag(m) X`` for m (T, n)."""
    samples = x.shape[: 1 + per_token]
    out.addcmul_(m.T.to(out.dtype).reshape(*samples, *[1] * (x.dim() - len(samples))), x)


def _matrices_of(stack: Tensor, wanted: Sequence[int], tokens: int) -> Tensor:
    """The rows of a stack that belong to these layers, without an index."""
    if len(wanted) * tokens == len(stack):
        return stack
    return torch.cat([stack[w * tokens : (w + 1) * tokens] for w in wanted])


def _groups(layers: int, entries: int, device: torch.device) -> Iterator[slice]:
    """Which layers, of so many entries each, are in float64 together."""
    limit = _ENTRIES_AT_ONCE if device.type == "cpu" else _ENTRIES_AT_ONCE_ON_GPUS
    size = max(1, limit // entries)
    for first in range(0, layers, size):
        yield slice(first, min(first + size, layers))


_pairwise = register(
    "pairwise(Tensor[] layers, int[] left, int[] right, str function, float[] parameters,"
    " str centering, bool per_token, int precision, bool differentiable)"
    " -> (Tensor values, Tensor degenerate, Tensor[] saved)",
    implementation=_forward,
    fake=_fake_forward,
)
_pairwise_backward = register(
    "pairwise_backward(Tensor grad, Tensor values, Tensor degenerate, Tensor[] saved,"
    " Tensor[] layers, int[] left, int[] right, int[] wanted, str function, float[] parameters,"
    " bool per_token, int precision) -> Tensor[]",
    implementation=_backward,
    fake=_fake_backward,
)


class _Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        left: list[int],
        right: list[int],
        options: Options,
        per_token: bool,
        precision: int,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        values, degenerate, saved = _pairwise(
            list(layers), left, right, *options, per_token, precision, True
        )
        ctx.pairs = left, right
        ctx.options = options.function, options.parameters, per_token, precision
        ctx.layers = len(layers)
        ctx.save_for_backward(values, degenerate, *layers, *saved)
        ctx.mark_non_differentiable(degenerate)
        return values.to(result_dtype(layers), copy=True), degenerate

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        values, degenerate, *rest = ctx.saved_tensors
        layers, saved = rest[: ctx.layers], rest[ctx.layers :]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        computed = _pairwise_backward(
            grad, values, degenerate, saved, layers, *ctx.pairs, wanted, *ctx.options
        )
        return (None, None, None, None, None, *by_input(computed, wanted, grad, layers))


def pairwise_alignment(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    options: Options,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    min_samples: int = 2,
    per_token: bool = False,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Alignments of pairs of layers, and which pairs have a degenerate one: two of (P,) or (P, T).

    Arguments are checked as those of :func:`pyguide.cka_pairs` are.
    """
    check_precision(precision)
    groups = [("xs[]", xs), ("ys[]", ys)]
    check_layers(groups, min_samples=min_samples)
    if per_token:
        check_tokens(groups)
    checked = check_pairs(pairs, len(xs), len(ys))
    if not checked:
        return no_values(xs, ys, per_token)
    if not has_native_backend(xs[0].device):
        return reference.pairwise_alignment(xs, ys, *options, pairs=checked, per_token=per_token)
    layers, left, right = distinct_layers(xs, ys, checked)
    code = precision_code(precision, xs[0].device)
    if needs_gradient(layers):
        values, degenerate = _Pairwise.apply(left, right, options, per_token, code, *layers)
    else:  # see align in pyguide/ops/cka_operators.py
        values, degenerate, _ = _pairwise(layers, left, right, *options, per_token, code, False)
    values = values.to(result_dtype([*xs, *ys]))
    if per_token:
        return values.view(len(checked), -1), degenerate.view(len(checked), -1)
    return values, degenerate
