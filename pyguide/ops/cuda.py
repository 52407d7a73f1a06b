"""Calls of the CUDA library on tensors: allocates outputs and workspace, passes pointers.

Nothing here is differentiable and nothing is checked beyond what the binding checks; the operators
of this package do that. csrc/cuda/api.h says what each call computes. Work is queued on torch's
current stream of the layers' device, and nothing waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide import _native, cuda_library
from pyguide.ops.contract import (
    CENTER_H,
    CENTER_NONE,
    CENTER_U,
    HIGHEST,
    Alignment,
    result_dtype,
    token_count,
)
from pyguide.ops.views import DTYPE_CODES, Outputs, view_of

__all__ = [
    "align",
    "alignment",
    "alignment_backward",
    "apply",
    "centered_grams",
    "coefficients",
    "gram",
    "gram_backward",
    "stats_shape",
]

# Above so many samples one n x n matrix fills a GPU: layers then follow one another, so that
# workspace and coefficients do not grow with their number.
_LARGEST_BATCH_AT_ONCE = 2048

# Rows of coefficients are zero-padded to a multiple of so many elements.
_ROW_MULTIPLE = 32

# kSquare and kMaxStatChunks in csrc/cuda/gram_finish.h.
_SQUARE, _MAX_STAT_CHUNKS = 32, 128


def stats_shape(matrices: int, n: int) -> tuple[int, ...]:
    """Shape of :attr:`Alignment.stats`: as stat_chunks in csrc/cuda/gram.cu, for symbolic n too."""
    rows = -(-n // _SQUARE)
    return (matrices, torch.sym_min(rows * (rows + 1) // 2, _MAX_STAT_CHUNKS), 2)


def gram(
    layers: Sequence[Tensor], *, center: bool, per_token: bool = False, precision: int = HIGHEST
) -> Tensor:
    """Gram matrices of L layers of T tokens, H-centred if ``center``: (L T, n, n)."""
    return _gram(layers, CENTER_H if center else CENTER_NONE, per_token, precision)[0]


def centered_grams(
    layers: Sequence[Tensor], *, debiased: bool, precision: int = HIGHEST
) -> tuple[Tensor, Tensor]:
    """Centred Gram matrices K° (L, n, n), and tr(Kc) and ||K°||^2 of each: (L, 2) float64."""
    grams, stats, _ = _gram(layers, CENTER_U if debiased else CENTER_H, False, precision)
    return grams, stats.sum(dim=1)


def alignment(
    layers: Sequence[Tensor],
    left: Sequence[int],
    right: Sequence[int],
    *,
    debiased: bool,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> Alignment:
    """Centre each layer's Gram once and align the pairs ``(left[p], right[p])``."""
    n, tokens = layers[0].size(0), token_count(layers, per_token)
    _target(layers[0].device)  # opens the library
    workspace_bytes = _native.cuda.alignment_workspace(len(left), tokens, n)
    stack_bytes = len(layers) * tokens * n * n * result_dtype(layers).itemsize
    centering = CENTER_U if debiased else CENTER_H
    grams, stats, workspace = _gram(
        layers, centering, per_token, precision, workspace_bytes, stack_bytes
    )
    return _align(grams, stats, left, right, tokens, workspace)


def align(
    grams: Tensor, stats: Tensor, left: Sequence[int], right: Sequence[int], tokens: int
) -> Alignment:
    """Align pairs of layers, of ``tokens`` matrices each, in a centred stack."""
    _target(grams.device)
    workspace_bytes = _native.cuda.alignment_workspace(len(left), tokens, grams.size(1))
    workspace = grams.new_empty(workspace_bytes, dtype=torch.uint8)
    return _align(grams, stats, left, right, tokens, workspace)


def alignment_backward(
    grad: Tensor,
    forward: Alignment,
    layers: Sequence[Tensor],
    left: Sequence[int],
    right: Sequence[int],
    wanted: Sequence[int],
    *,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """Gradient of ``(grad * values).sum()`` in each wanted layer, in its dtype and strides."""
    if not wanted:
        return []
    grams, tokens = forward.grams, token_count(layers, per_token)
    n = grams.size(1)
    outputs = Outputs([layers[w] for w in wanted], per_token)
    groups = _groups(len(wanted), n)
    largest = max(group.stop - group.start for group in groups) * tokens
    a, bounds = _coefficient_space(grams, largest)
    for group in groups:
        _coefficients(grad, forward, left, right, wanted[group], tokens, a, bounds)
        _apply(a, bounds, outputs, group, True, precision)
    return outputs.collect()


def coefficients(
    grad: Tensor,
    forward: Alignment,
    left: Sequence[int],
    right: Sequence[int],
    wanted: Sequence[int],
    tokens: int,
) -> Tensor:
    """A with ``d(grad * values).sum() = <A, dK> / 2`` for each wanted layer: (W T, n, n)."""
    grams = forward.grams
    a, bounds = _coefficient_space(grams, len(wanted) * tokens)
    if wanted:
        _coefficients(grad, forward, left, right, wanted, tokens, a, bounds)
    return a[:, :, : grams.size(1)]


def gram_backward(
    grad: Tensor,
    layers: Sequence[Tensor],
    wanted: Sequence[int],
    *,
    center: bool,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """Gradient of ``(grad * gram(layers)).sum()`` in each wanted layer."""
    if not wanted:
        return []
    n = grad.size(1)
    groups = _groups(len(wanted), n)
    largest = max(group.stop - group.start for group in groups)
    # Two float64 stacks, and the coefficients.
    _check_memory(grad.device, largest * n * (16 * n + _row_stride(n) * grad.itemsize))
    outputs = Outputs([layers[w] for w in wanted])
    for group in groups:
        coefficients = _symmetrize([grad[w] for w in wanted[group]], center)
        _apply(coefficients, _bounds(coefficients), outputs, group, center, precision)
    return outputs.collect()


def apply(
    coefficients: Tensor,
    layers: Sequence[Tensor],
    *,
    shifted: bool,
    per_token: bool = False,
    precision: int = HIGHEST,
) -> list[Tensor]:
    """``A_l (X_l - s_l)`` for symmetric A (L, n, n), in each layer's dtype and strides."""
    n = coefficients.size(1)
    padded = torch.nn.functional.pad(coefficients, (0, _row_stride(n) - n)).contiguous()
    outputs = Outputs(layers, per_token)
    _apply(padded, _bounds(padded), outputs, slice(0, len(layers)), shifted, precision)
    return outputs.collect()


def _gram(
    layers: Sequence[Tensor],
    centering: int,
    per_token: bool,
    precision: int,
    least_workspace: int = 0,
    other_bytes: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices, their statistics, and workspace of at least so many bytes to use again."""
    n, tokens = layers[0].size(0), token_count(layers, per_token)
    views, owners = zip(*(view_of(x, per_token) for x in layers), strict=True)
    groups = _groups(len(layers), n)
    device, stream = _target(layers[0].device)
    sizes = [_native.cuda.gram_workspace(views[group], n, precision, device) for group in groups]
    workspace_bytes = max(least_workspace, *sizes)
    _check_memory(layers[0].device, workspace_bytes + other_bytes)
    grams = layers[0].new_empty((len(layers) * tokens, n, n), dtype=result_dtype(layers))
    stats = grams.new_empty(stats_shape(len(grams), n), dtype=torch.float64)
    workspace = grams.new_empty(workspace_bytes, dtype=torch.uint8)
    for group in groups:
        first = group.start * tokens
        _native.cuda.gram(
            views[group],
            centering,
            precision,
            grams[first:].data_ptr(),
            DTYPE_CODES[grams.dtype],
            n,
            stats[first:].data_ptr(),
            workspace.data_ptr(),
            workspace_bytes,
            device,
            stream,
        )
    del owners  # the views pointed into them until here
    return grams, stats, workspace


def _align(
    grams: Tensor,
    stats: Tensor,
    left: Sequence[int],
    right: Sequence[int],
    tokens: int,
    workspace: Tensor,
) -> Alignment:
    values = grams.new_empty(len(left) * tokens, dtype=torch.float64)
    degenerate = grams.new_empty(len(left) * tokens, dtype=torch.bool)
    _native.cuda.alignment(
        grams.data_ptr(),
        DTYPE_CODES[grams.dtype],
        grams.size(0),
        grams.size(1),
        stats.data_ptr(),
        left,
        right,
        tokens,
        values.data_ptr(),
        degenerate.data_ptr(),
        workspace.data_ptr(),
        workspace.numel(),
        *_target(grams.device),
    )
    return Alignment(values, degenerate, grams, stats)


def _coefficient_space(grams: Tensor, matrices: int) -> tuple[Tensor, Tensor]:
    """Padded matrices to fill, and room for the largest magnitude in each."""
    n = grams.size(1)
    _check_memory(grams.device, matrices * n * _row_stride(n) * grams.itemsize)
    padded = grams.new_empty((matrices, n, _row_stride(n)))
    return padded, grams.new_empty(matrices, dtype=torch.float64)


def _coefficients(
    grad: Tensor,
    forward: Alignment,
    left: Sequence[int],
    right: Sequence[int],
    wanted: Sequence[int],
    tokens: int,
    out: Tensor,
    bounds: Tensor,
) -> None:
    grams, grad = forward.grams, grad.contiguous()
    _native.cuda.coefficients(
        grams.data_ptr(),
        DTYPE_CODES[grams.dtype],
        grams.size(0),
        grams.size(1),
        forward.stats.data_ptr(),
        left,
        right,
        tokens,
        forward.values.data_ptr(),
        forward.degenerate.data_ptr(),
        grad.data_ptr(),
        DTYPE_CODES[grad.dtype],
        wanted,
        out.data_ptr(),
        out.size(2),
        bounds.data_ptr(),
        *_target(grams.device),
    )


def _apply(
    coefficients: Tensor,
    bounds: Tensor,
    outputs: Outputs,
    group: slice,
    shifted: bool,
    precision: int,
) -> None:
    """Fills the outputs of a group of layers from padded coefficients."""
    _native.cuda.apply(
        coefficients.data_ptr(),
        DTYPE_CODES[coefficients.dtype],
        coefficients.size(1),
        coefficients.size(2),
        bounds.data_ptr(),
        outputs.layer_views[group],
        outputs.views[group],
        shifted,
        precision,
        *_target(coefficients.device),
    )


def _symmetrize(grads: list[Tensor], center: bool) -> Tensor:
    """``G + G^T`` of each (n, n) matrix, H-centred if ``center``, with padded rows."""
    g = torch.stack(grads).double()
    a = g + g.mT
    if center:
        rows = a.mean(dim=2, keepdim=True)
        a = a.sub_(rows).sub_(rows.mT).add_(rows.mean(dim=1, keepdim=True))
    n = a.size(1)
    padded = grads[0].new_zeros((len(grads), n, _row_stride(n)))
    padded[:, :, :n] = a
    return padded


def _bounds(coefficients: Tensor) -> Tensor:
    """The largest magnitude in each matrix, (L,) float64; NaN where there is one."""
    return torch.linalg.vector_norm(coefficients, float("inf"), dim=(1, 2)).double()


def _row_stride(n: int) -> int:
    return -(-n // _ROW_MULTIPLE) * _ROW_MULTIPLE


def _groups(count: int, n: int) -> list[slice]:
    """Which of ``count`` layers one call takes."""
    size = max(count, 1) if n <= _LARGEST_BATCH_AT_ONCE else 1
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _target(device: torch.device) -> tuple[int, int]:
    """The device's index, kernels loaded, and torch's current stream there."""
    cuda_library.capability(device.index)
    return device.index, torch.cuda.current_stream(device).cuda_stream


@functools.cache
def _memory(device: torch.device) -> int:
    """Bytes of the device's memory."""
    return torch.cuda.get_device_properties(device).total_memory


def _check_memory(device: torch.device, needed: int) -> None:
    """Raise if a call needs more than half the device's memory beyond its results."""
    memory = _memory(device)
    if needed > memory // 2:
        raise torch.OutOfMemoryError(
            f"this call needs {needed} bytes ({needed / 2**30:.1f} GiB) beyond its results, more "
            f"than half of the {memory / 2**30:.1f} GiB of {device}: compare fewer layers a call, "
            "or use a smaller batch"
        )
