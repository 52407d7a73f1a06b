// How kernels see a strided matrix, and how its tiles come into shared memory.
#pragma once

#include "core/matrix_view.h"
#include "cuda/ptx/copy.h"

namespace pyguide::cuda {

// The matrices of a layer, or a stack of coefficients. Strides are in elements.
struct Source {
  const char* data;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  int64_t token_stride;
  int32_t copy_bytes;  // 16, 8 or 4: what cp.async may move at once; 0: element by element
};

// The widest copies that suit every row of every token: a row of odd width in 16 bits starts at
// an odd address every other time, where cp.async is impossible.
inline int copy_bytes_for(const MatrixBatch& x) {
  const MatrixView& view = x.first;
  const int64_t size = size_of(view.dtype);
  if (view.cols > 1 && view.col_stride != 1) return 0;
  for (int64_t bytes = 16; bytes >= 4 && bytes >= size; bytes /= 2) {
    const bool aligned = int64_t(reinterpret_cast<uintptr_t>(view.data)) % bytes == 0;
    const bool rows = view.rows == 1 || view.row_stride * size % bytes == 0;
    const bool tokens = x.count == 1 || x.stride * size % bytes == 0;
    if (aligned && rows && tokens) return int(bytes);
  }
  return 0;
}

inline Source source_of(const MatrixBatch& x) {
  const MatrixView& view = x.first;
  return {static_cast<const char*>(view.data),
          view.cols,
          view.row_stride,
          view.col_stride,
          x.stride,
          copy_bytes_for(x)};
}

constexpr int kChunkBytes = 16;

// Rows of 128 bytes, the operand of mma that has its depth in memory order. Chunks are permuted
// within a row so that ldmatrix, which reads a chunk of eight rows, meets every bank once.
template <int kRows_>
struct RowSlab {
  static constexpr int kRows = kRows_;
  static constexpr int kChunks = 8;
  static constexpr int kBytes = kRows * kChunks * kChunkBytes;
  PYGUIDE_DEVICE static int offset(int row, int chunk) {
    return (row * kChunks + (chunk ^ (row & 7))) * kChunkBytes;
  }
};

// A few samples of kCols features: the operand whose depth runs down the columns. 16-bit elements
// are read by a transposing ldmatrix, eight rows of a chunk at once; wider ones one by one, from
// four rows and eight columns.
template <class Element, int kRows_, int kCols>
struct FeatureSlab {
  static constexpr int kRows = kRows_;
  static constexpr int kPerChunk = kChunkBytes / int(sizeof(Element));
  static constexpr int kChunks = kCols / kPerChunk;
  static constexpr int kBytes = kRows * kChunks * kChunkBytes;
  PYGUIDE_DEVICE static int offset(int row, int chunk) {
    const int swizzle = sizeof(Element) == 2 ? row & 7 : (row & 3) << 1;
    return (row * kChunks + (chunk ^ swizzle)) * kChunkBytes;
  }
  PYGUIDE_DEVICE static int element(int row, int col) {
    return offset(row, col / kPerChunk) + col % kPerChunk * int(sizeof(Element));
  }
};

// How much of `limit` lies beyond `offset`, at most `most`.
PYGUIDE_DEVICE int count_within(int64_t limit, int offset, int most) {
  const int64_t left = limit - offset;
  return left <= 0 ? 0 : left < most ? int(left) : most;
}

template <int kCopyBytes>
PYGUIDE_DEVICE void copy_chunk(char* to, const char* from, const char* valid_address, int valid) {
  PYGUIDE_UNROLL
  for (int b = 0; b < kChunkBytes; b += kCopyBytes) {
    const int bytes = count_within(valid, b, kCopyBytes);
    ptx::copy_async<kCopyBytes>(to + b, bytes > 0 ? from + b : valid_address, bytes);
  }
}

// A thread copies one chunk of every kThreads / kChunks-th row.
template <class Element, class Slab, int kThreads, int kCopyBytes>
PYGUIDE_DEVICE void copy_slab(char* slab, const Source& x, const char* matrix, int64_t n,
                              int64_t row, int64_t col) {
  constexpr int kRowStep = kThreads / Slab::kChunks;
  static_assert(kThreads % Slab::kChunks == 0 && Slab::kRows % kRowStep == 0,
                "every thread loads as many chunks");
  const int chunk = thread_index() % Slab::kChunks, first = thread_index() / Slab::kChunks;
  const int64_t feature = col + chunk * (kChunkBytes / int(sizeof(Element)));
  const int valid = count_within((x.cols - feature) * int64_t(sizeof(Element)), 0, kChunkBytes);
  const char* from = matrix + ((row + first) * x.row_stride + feature) * int64_t(sizeof(Element));
  const int64_t step = kRowStep * x.row_stride * int64_t(sizeof(Element));
  const int rows = count_within(n - row, 0, Slab::kRows);
  PYGUIDE_UNROLL
  for (int r = first; r < Slab::kRows; r += kRowStep, from += step) {
    copy_chunk<kCopyBytes>(slab + Slab::offset(r, chunk), from, matrix, r < rows ? valid : 0);
  }
}

// The slow way, for columns that are not contiguous or rows that start anywhere.
template <class Element, class Slab, int kThreads>
PYGUIDE_DEVICE void read_slab(char* slab, const Source& x, const char* matrix, int64_t n,
                              int64_t row, int64_t col) {
  constexpr int kPerChunk = kChunkBytes / int(sizeof(Element));
  // Neighbouring threads follow the axis that is contiguous in memory.
  const bool down_columns = x.row_stride < x.col_stride;
PYGUIDE_NO_UNROLL
  for (int c = thread_index(); c < Slab::kRows * Slab::kChunks; c += kThreads) {
    const int r = down_columns ? c % Slab::kRows : c / Slab::kChunks;
    const int chunk = down_columns ? c / Slab::kRows : c % Slab::kChunks;
    const int64_t feature = col + chunk * kPerChunk;
    const auto* from = reinterpret_cast<const Element*>(matrix) + (row + r) * x.row_stride +
                       feature * x.col_stride;
    auto* to = reinterpret_cast<Element*>(slab + Slab::offset(r, chunk));
PYGUIDE_NO_UNROLL
    for (int e = 0; e < kPerChunk; ++e) {
      to[e] = row + r < n && feature + e < x.cols ? from[e * x.col_stride] : Element{};
    }
  }
}

// Brings rows [row, row + kRows) and the columns from `col` on of a matrix of n rows into a slab;
// what lies outside the matrix becomes 0. The caller commits the copies.
template <class Element, class Slab, int kThreads>
PYGUIDE_DEVICE void load_slab(char* slab, const Source& x, const char* matrix, int64_t n,
                              int64_t row, int64_t col) {
  switch (x.copy_bytes) {
    case 16:
      return copy_slab<Element, Slab, kThreads, 16>(slab, x, matrix, n, row, col);
    case 8:
      return copy_slab<Element, Slab, kThreads, 8>(slab, x, matrix, n, row, col);
    case 4:
      return copy_slab<Element, Slab, kThreads, 4>(slab, x, matrix, n, row, col);
    default:
      return read_slab<Element, Slab, kThreads>(slab, x, matrix, n, row, col);
  }
}

}  // namespace pyguide::cuda
