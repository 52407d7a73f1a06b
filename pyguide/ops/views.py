"""How a tensor of shape (n, ...) is seen as an n x d matrix without a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPE_CODES", "MatrixView", "matched_views", "view_of"]

# The numbers of `enum class DType` in csrc/core/dtype.h.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class MatrixView(NamedTuple):
    """What the native code needs to know of a matrix; strides are in elements."""

    pointer: int
    dtype: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int


class _Collapsed(NamedTuple):
    cols: int
    col_stride: int
    order: tuple[int, ...]


def _collapse(x: Tensor) -> _Collapsed | None:
    """Collapse the feature axes of x in memory order, or None if they need a copy.

    Any order will do for a Gram matrix, so a channels_last tensor and ``x[:, t, :]`` of
    an (n, T, d) tensor are matrices as they are.
    """
    axes = [(x.stride(axis), axis) for axis in range(1, x.dim()) if x.size(axis) > 1]
    if not axes:
        return _Collapsed(1, 1, ())
    axes.sort()
    col_stride = axes[0][0]
    expected = col_stride
    for stride, axis in axes:
        if stride != expected or stride == 0:
            return None
        expected = stride * x.size(axis)
    return _Collapsed(expected // col_stride, col_stride, tuple(axis for _, axis in axes))


def _view(x: Tensor, collapsed: _Collapsed) -> MatrixView:
    return MatrixView(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.size(0),
        collapsed.cols,
        x.stride(0),
        collapsed.col_stride,
    )


def view_of(x: Tensor) -> tuple[MatrixView, Tensor]:
    """The matrix view of x, and the tensor that owns the memory: x or one copy of it."""
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
    x_collapsed, out_collapsed = _collapse(x), _collapse(out)
    if x_collapsed and out_collapsed and x_collapsed.order == out_collapsed.order:
        return _view(x, x_collapsed), _view(out, out_collapsed), x, out
    x_view, x = view_of(x.contiguous())
    out_view, out = view_of(torch.empty_like(out, memory_format=torch.contiguous_format))
    return x_view, out_view, x, out
