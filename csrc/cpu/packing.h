// Packing: read a rectangle of a strided matrix of any dtype once, convert it, subtract the
// shift, and lay it out for the micro-kernel. Internal linkage; see micro_kernel.h.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/kernels.h"
#include "cpu/micro_kernel.h"

namespace pyguide::cpu {
namespace {

constexpr int64_t kShiftRows = 16;

// Calls body with a typed pointer to the view's data.
template <class Body>
inline void with_typed_data(const MatrixView& view, Body&& body) {
  switch (view.dtype) {
    case DType::kFloat64:
      return body(static_cast<const double*>(view.data));
    case DType::kFloat32:
      return body(static_cast<const float*>(view.data));
    case DType::kBFloat16:
      return body(static_cast<const bfloat16*>(view.data));
    case DType::kFloat16:
      return body(static_cast<const float16*>(view.data));
  }
}

template <class Source, class T>
void column_shift_of(const Source* x, const MatrixView& view, int64_t cols, T* shift) {
  const int64_t samples = view.rows < kShiftRows ? view.rows : kShiftRows;
  for (int64_t c = 0; c < cols; ++c) shift[c] = T(0);
  for (int64_t s = 1; s < samples; ++s) {
    const Source* row = x + (view.rows * s / samples) * view.row_stride;
    if (view.col_stride == 1) {
      for (int64_t c = 0; c < cols; ++c) shift[c] += T(widen(row[c])) - T(widen(x[c]));
    } else {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t at = c * view.col_stride;
        shift[c] += T(widen(row[at])) - T(widen(x[at]));
      }
    }
  }
  const T scale = T(1) / T(samples);
  for (int64_t c = 0; c < cols; ++c) {
    shift[c] = T(widen(x[c * view.col_stride])) + shift[c] * scale;
  }
}

template <class T>
void column_shift(const MatrixView& view, int64_t col, int64_t cols, T* shift) {
  with_typed_data(view, [&](auto* x) {
    column_shift_of(x + col * view.col_stride, view, cols, shift);
  });
}

// out[i][j] = in[j][i] for W vectors of W lanes: log2(W) rounds of interleaving row i with row
// i + W/2.
template <class T, int W>
inline void transpose(typename VectorOf<T, W>::type (&rows)[W]) {
  using Vector = typename VectorOf<T, W>::type;
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    Vector next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      Vector low, high;
#pragma GCC unroll 8
      for (int j = 0; j < W / 2; ++j) {
        low[2 * j] = rows[i][j];
        low[2 * j + 1] = rows[i + W / 2][j];
        high[2 * j] = rows[i][j + W / 2];
        high[2 * j + 1] = rows[i + W / 2][j + W / 2];
      }
      next[2 * i] = low;
      next[2 * i + 1] = high;
    }
#pragma GCC unroll 8
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

template <class T, int W, int64_t kSliver>
struct Packing {
  using Vector = typename VectorOf<T, W>::type;
  static constexpr int64_t kStep = 64;  // depth handled at a time: the strip stays in L1

  // The depth axis is the contiguous one (or neither is): rows are converted into a strip, then
  // transposed.
  template <class Source>
  static void pack_rows(const Source* x, const MatrixView& view, ShiftAxis axis, int64_t rows,
                        int64_t depths, const T* shift, T* packed) {
    alignas(64) T strip[kSliver][kStep];
    for (int64_t k = 0; k < depths; k += kStep) {
      const int64_t steps = depths - k < kStep ? depths - k : kStep;
      for (int64_t r = 0; r < kSliver; ++r) {
        T* to = strip[r];
        if (r >= rows) {
          for (int64_t i = 0; i < steps; ++i) to[i] = T(0);
          continue;
        }
        const Source* from = x + r * view.row_stride + k * view.col_stride;
        if (view.col_stride == 1) {
          for (int64_t i = 0; i < steps; ++i) to[i] = T(widen(from[i]));
        } else {
          for (int64_t i = 0; i < steps; ++i) to[i] = T(widen(from[i * view.col_stride]));
        }
        if (axis == ShiftAxis::kDepth) {
          for (int64_t i = 0; i < steps; ++i) to[i] -= shift[k + i];
        } else if (axis == ShiftAxis::kRow) {
          for (int64_t i = 0; i < steps; ++i) to[i] -= shift[r];
        }
      }
      int64_t i = 0;
      for (; i + W <= steps; i += W) {
        for (int64_t r = 0; r < kSliver; r += W) {
          Vector square[W];
#pragma GCC unroll 8
          for (int j = 0; j < W; ++j) {
            square[j] = *reinterpret_cast<const Vector*>(&strip[r + j][i]);
          }
          transpose<T, W>(square);
#pragma GCC unroll 8
          for (int j = 0; j < W; ++j) {
            *reinterpret_cast<Vector*>(packed + (k + i + j) * kSliver + r) = square[j];
          }
        }
      }
      for (; i < steps; ++i) {
        for (int64_t r = 0; r < kSliver; ++r) packed[(k + i) * kSliver + r] = strip[r][i];
      }
    }
  }

  // The row axis is the contiguous one: the packed layout is the source's own order.
  template <class Source>
  static void pack_depths(const Source* x, const MatrixView& view, ShiftAxis axis, int64_t rows,
                          int64_t depths, const T* shift, T* packed) {
    for (int64_t k = 0; k < depths; ++k) {
      const Source* from = x + k * view.col_stride;
      T* to = packed + k * kSliver;
      if (rows == kSliver && view.row_stride == 1) {
        for (int64_t r = 0; r < kSliver; ++r) to[r] = T(widen(from[r]));
        if (axis == ShiftAxis::kDepth) {
          for (int64_t r = 0; r < kSliver; ++r) to[r] -= shift[k];
        } else if (axis == ShiftAxis::kRow) {
          for (int64_t r = 0; r < kSliver; ++r) to[r] -= shift[r];
        }
        continue;
      }
      for (int64_t r = 0; r < rows; ++r) {
        const T s = axis == ShiftAxis::kDepth ? shift[k] : axis == ShiftAxis::kRow ? shift[r] : T(0);
        to[r] = T(widen(from[r * view.row_stride])) - s;
      }
      for (int64_t r = rows; r < kSliver; ++r) to[r] = T(0);
    }
  }

  static void pack(const Operand& operand, const Part& part, const T* shift, T* packed) {
    const MatrixView& view = operand.view;
    with_typed_data(view, [&](auto* data) {
      for (int64_t r = 0; r < part.rows; r += kSliver) {
        const auto* x = data + (part.row + r) * view.row_stride + part.depth * view.col_stride;
        const int64_t rows = part.rows - r < kSliver ? part.rows - r : kSliver;
        const T* sliver_shift = operand.shift_axis == ShiftAxis::kRow ? shift + r : shift;
        if (view.row_stride < view.col_stride) {
          pack_depths(x, view, operand.shift_axis, rows, part.depths, sliver_shift, packed);
        } else {
          pack_rows(x, view, operand.shift_axis, rows, part.depths, sliver_shift, packed);
        }
        packed += kSliver * part.depths;
      }
    });
  }
};

}  // namespace
}  // namespace pyguide::cpu
