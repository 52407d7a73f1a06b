"""How a tensor of shape (n, ...) is seen as one n x d matrix, or as one a token, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPE_CODES", "MatrixView", "Outputs", "view_of"]

# The numbers of `enum class DType` in csrc/core/dtype.h.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


# What the native code needs to know of a layer: pointer, dtype code, rows, columns, the strides
# of both in elements, the number of tokens (1 for a layer that is compared as a whole) and their
# stride. A plain tuple: there may be hundreds of layers in a call.
MatrixView = tuple[int, int, int, int, int, int, int, int]


class _Collapsed(NamedTuple):
    cols: int
    col_stride: int
    order: tuple[int, ...]


def _collapse(x: Tensor, first_axis: int) -> _Collapsed | None:
    """Collapse the feature axes of x in memory order, or None if they need a copy.

    Any order will do for a Gram matrix, so a channels_last tensor and ``x[:, t, :]`` of
    an (n, T, d) tensor are matrices as they are.
    """
    shape, strides = x.shape, x.stride()
    axes = sorted((strides[a], a) for a in range(first_axis, len(shape)) if shape[a] > 1)
    if not axes:
        return _Collapsed(1, 1, ())
    col_stride = axes[0][0]
    expected = col_stride
    for stride, axis in axes:
        if stride != expected or stride == 0:
            return None
        expected = stride * shape[axis]
    return _Collapsed(expected // col_stride, col_stride, tuple(axis for _, axis in axes))


def _matrix(x: Tensor, per_token: bool) -> MatrixView | None:
    """The view of a layer for which nothing needs collapsing; None for others."""
    if per_token:
        return None
    if x.is_contiguous():
        n = x.shape[0]
        cols = x.numel() // n
        return (x.data_ptr(), DTYPE_CODES[x.dtype], n, cols, cols, 1, 1, 0)
    shape, strides = x.shape, x.stride()
    if len(shape) != 2 or strides[1] == 0:
        return None
    return (x.data_ptr(), DTYPE_CODES[x.dtype], shape[0], shape[1], strides[0], strides[1], 1, 0)


def _collapsed_view(x: Tensor, per_token: bool) -> tuple[MatrixView, tuple[int, ...]] | None:
    """The view and the order of the feature axes in memory; None if it takes a copy."""
    shape, strides = x.shape, x.stride()
    tokens, token_stride = (shape[1], strides[1]) if per_token else (1, 0)
    collapsed = _collapse(x, 2 if per_token else 1)
    if collapsed is None or (tokens > 1 and token_stride == 0):
        return None
    view = (
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        shape[0],
        collapsed.cols,
        strides[0],
        collapsed.col_stride,
        tokens,
        token_stride,
    )
    return view, collapsed.order


def view_of(x: Tensor, per_token: bool = False) -> tuple[MatrixView, Tensor]:
    """The view of x, and the tensor that owns the memory: x or one copy of it.

    ``per_token`` makes the second axis of x, (n, T, ...), the tokens.
    """
    matrix = _matrix(x, per_token)
    if matrix is not None:
        return matrix, x
    found = _collapsed_view(x, per_token)
    if found is None:
        x = x.contiguous()
        found = _collapsed_view(x, per_token)
        assert found is not None
    return found[0], x


class Outputs:
    """Tensors like the given layers for a native call to fill, both viewed alike.

    A layer and its output that cannot be viewed with their features in the same order are
    contiguous copies until :meth:`collect`.
    """

    def __init__(self, layers: Sequence[Tensor], per_token: bool = False) -> None:
        self._outs = [torch.empty_like(x) for x in layers]
        pairs = zip(layers, self._outs, strict=True)
        matched = [_matched_views(x, out, per_token) for x, out in pairs]
        self.layer_views = [m[0] for m in matched]
        self.views = [m[1] for m in matched]
        self._owners = [(m[2], m[3]) for m in matched]

    def collect(self) -> list[Tensor]:
        """The outputs, after the call."""
        for out, (_, written) in zip(self._outs, self._owners, strict=True):
            if written is not out:
                out.copy_(written)
        return self._outs


def _matched_views(
    x: Tensor, out: Tensor, per_token: bool
) -> tuple[MatrixView, MatrixView, Tensor, Tensor]:
    """Views of x and out with the features in the same order, and the tensors that own them."""
    if x.stride() == out.stride():
        x_view, owner = view_of(x, per_token)
        if owner is x:
            return x_view, (out.data_ptr(), *x_view[1:]), x, out
    x_found, out_found = _collapsed_view(x, per_token), _collapsed_view(out, per_token)
    if x_found and out_found and x_found[1] == out_found[1]:
        return x_found[0], out_found[0], x, out
    x_view, x = view_of(x.contiguous(), per_token)
    out_view, out = view_of(torch.empty_like(out, memory_format=torch.contiguous_format), per_token)
    return x_view, out_view, x, out
