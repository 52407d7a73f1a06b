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
  int32_t tokens;
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
          int32_t(x.count),
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

// The first `limit` bytes from `offset` on, at most `most`.
PYGUIDE_DEVICE int bytes_within(int64_t limit, int offset, int most) {
  const int64_t left = limit - offset;
  return left <= 0 ? 0 : left < most ? int(left) : most;
}

template <class Element, int kCopyBytes>
PYGUIDE_DEVICE void copy_chunk(char* to, const char* from, const char* valid_address, int valid) {
  PYGUIDE_UNROLL
  for (int b = 0; b < kChunkBytes; b += kCopyBytes) {
    const int bytes = bytes_within(valid, b, kCopyBytes);
    ptx::copy_async<kCopyBytes>(to + b, bytes > 0 ? from + b : valid_address, bytes);
  }
}

template <class Element>
PYGUIDE_DEVICE void copy_elements(char* to, const char* from, int64_t col_stride, int valid) {
  constexpr int kElements = kChunkBytes / int(sizeof(Element));
  PYGUIDE_UNROLL
  for (int e = 0; e < kElements; ++e) {
    Element value{};
    if (e * int(sizeof(Element)) < valid) {
      value = reinterpret_cast<const Element*>(from)[e * col_stride];
    }
    reinterpret_cast<Element*>(to)[e] = value;
  }
}

template <class Element, class Slab, int kThreads, int kCopyBytes>
PYGUIDE_DEVICE void load_slab_by(char* slab, const Source& x, const char* matrix, int64_t n,
                                 int64_t row, int64_t col) {
  constexpr int kPerChunk = kChunkBytes / int(sizeof(Element));
  constexpr int kCount = Slab::kRows * Slab::kChunks;
  static_assert(kCount % kThreads == 0, "every thread loads as many chunks");
  // Neighbouring threads follow the axis that is contiguous in memory.
  const bool down_columns = kCopyBytes == 0 && x.row_stride < x.col_stride;
  PYGUIDE_UNROLL
  for (int i = 0; i < kCount / kThreads; ++i) {
    const int c = i * kThreads + thread_index();
    const int r = down_columns ? c % Slab::kRows : c / Slab::kChunks;
    const int chunk = down_columns ? c / Slab::kRows : c % Slab::kChunks;
    const int64_t first = col + int64_t(chunk) * kPerChunk;
    const bool inside = row + r < n;
    const int valid =
        inside ? bytes_within((x.cols - first) * int64_t(sizeof(Element)), 0, kChunkBytes) : 0;
    const char* from =
        matrix + ((row + r) * x.row_stride + first * x.col_stride) * int64_t(sizeof(Element));
    char* to = slab + Slab::offset(r, chunk);
    if constexpr (kCopyBytes == 0) {
      copy_elements<Element>(to, from, x.col_stride, valid);
    } else {
      copy_chunk<Element, kCopyBytes>(to, from, matrix, valid);
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
      return load_slab_by<Element, Slab, kThreads, 16>(slab, x, matrix, n, row, col);
    case 8:
      return load_slab_by<Element, Slab, kThreads, 8>(slab, x, matrix, n, row, col);
    case 4:
      return load_slab_by<Element, Slab, kThreads, 4>(slab, x, matrix, n, row, col);
    default:
      return load_slab_by<Element, Slab, kThreads, 0>(slab, x, matrix, n, row, col);
  }
}

}  // namespace pyguide::cuda
