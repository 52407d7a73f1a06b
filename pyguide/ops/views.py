"""How a tensor of shape (n, ...) is seen as an n x d matrix without a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPE_CODES", "MatrixView", "matched_views", "view_of"]

# The numbers of `enum class DType` in csrc/core/dtype.h.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


# What the native code needs to know of a matrix: pointer, dtype code, rows, columns, and the
# strides of both in elements. A plain tuple: there may be hundreds of layers in a call.
MatrixView = tuple[int, int, int, int, int, int]


class _Collapsed(NamedTuple):
    cols: int
    col_stride: int
    order: tuple[int, ...]


def _collapse(x: Tensor) -> _Collapsed | None:
    """Collapse the feature axes of x in memory order, or None if they need a copy.

    Any order will do for a Gram matrix, so a channels_last tensor and ``x[:, t, :]`` of
    an (n, T, d) tensor are matrices as they are.
    """
    shape, strides = x.shape, x.stride()
    axes = sorted((strides[a], a) for a in range(1, len(shape)) if shape[a] > 1)
    if not axes:
        return _Collapsed(1, 1, ())
    col_stride = axes[0][0]
    expected = col_stride
    for stride, axis in axes:
        if stride != expected or stride == 0:
            return None
        expected = stride * shape[axis]
    return _Collapsed(expected // col_stride, col_stride, tuple(axis for _, axis in axes))


def _matrix(x: Tensor) -> MatrixView | None:
    """The view of an (n, d) matrix, for which nothing needs collapsing; None for others."""
    shape, strides = x.shape, x.stride()
    if len(shape) != 2 or strides[1] == 0:
        return None
    return (x.data_ptr(), DTYPE_CODES[x.dtype], shape[0], shape[1], strides[0], strides[1])


def _view(x: Tensor, collapsed: _Collapsed) -> MatrixView:
    return (
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.size(0),
        collapsed.cols,
        x.stride(0),
        collapsed.col_stride,
    )


def view_of(x: Tensor) -> tuple[MatrixView, Tensor]:
    """The matrix view of x, and the tensor that owns the memory: x or one copy of it."""
    matrix = _matrix(x)
    if matrix is not None:
        return matrix, x
    collapsed = _collapse(x)
    if collapsed is None:
        x = x.contiguous()
        collapsed = _collapse(x)
        assert collapsed is not None
    return _view(x, collapsed), x


def matched_views(x: Tensor, out: Tensor) -> tuple[MatrixView, MatrixView, Tensor, Tensor]:
    """Views of x and out with the features in the same order, and the tensors that own them.

    If they cannot be viewed alike, both are contiguous copies; the caller copies the
    result back when the last tensor returned is not ``out``.
    """
    x_matrix, out_matrix = _matrix(x), _matrix(out)
    if x_matrix is not None and out_matrix is not None:
        return x_matrix, out_matrix, x, out
    x_collapsed, out_collapsed = _collapse(x), _collapse(out)
    if x_collapsed and out_collapsed and x_collapsed.order == out_collapsed.order:
        return _view(x, x_collapsed), _view(out, out_collapsed), x, out
    x_view, x = view_of(x.contiguous())
    out_view, out = view_of(torch.empty_like(out, memory_format=torch.contiguous_format))
    return x_view, out_view, x, out
