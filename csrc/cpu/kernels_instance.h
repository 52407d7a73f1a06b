// Instantiates the kernel table for one vector width. Included once by each kernels_<name>.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/micro_kernel.h"
#include "cpu/packing.h"

namespace pyguide::cpu {
namespace {

template <class T, int W, int kRows, int kVectors>
struct Instance {
  using Micro = MicroKernel<T, W, kRows, kVectors>;
  static constexpr int64_t kSliver = Micro::kSliver;
  using Pack = Packing<T, W, kSliver>;
  static constexpr int64_t kMaxStoreCols = kStoreCols / kSliver * kSliver + kSliver;

  // How many vectors of the tile at (i, j) hold wanted results.
  static inline int64_t live_vectors(int64_t i, int64_t j, int64_t cols, bool lower) {
    int64_t live = cols - j;
    if (lower && i + kRows - j < live) live = i + kRows - j;
    return live >= kSliver ? kVectors : (live + W - 1) / W;
  }

  static inline const T* packed_rows(const T* p, int64_t i, int64_t depths) {
    return p + (i / kSliver) * kSliver * depths + i % kSliver;
  }

  // The slivers of Q stay in L1 while P streams from L2.
  static void accumulate(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                         bool lower, double* sums, int64_t ld) {
    alignas(64) T tile[kRows * kSliver];
    for (int64_t j = 0; j < cols; j += kSliver) {
      for (int64_t i = lower ? j : 0; i < rows; i += kRows) {
        const int64_t live = live_vectors(i, j, cols, lower);
        Micro::run(packed_rows(p, i, depths), q + j * depths, depths, live, tile, kSliver);
        for (int64_t v = 0; v < live; ++v) {
          for (int64_t r = 0; r < kRows; ++r) {
            double* to = sums + (i + r) * ld + j + v * W;
            const T* from = tile + r * kSliver + v * W;
            for (int64_t c = 0; c < W; ++c) to[c] += double(from[c]);
          }
        }
      }
    }
  }

  // Row by row of tiles, so that the lines of `out` are written once and whole.
  template <class Out>
  static void store_as(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                       Out* out, int64_t row_stride, int64_t col_stride) {
    alignas(64) T strip[kRows * kMaxStoreCols];
    for (int64_t i = 0; i < rows; i += kRows) {
      for (int64_t j = 0; j < cols; j += kSliver) {
        const int64_t live = live_vectors(i, j, cols, false);
        Micro::run(packed_rows(p, i, depths), q + j * depths, depths, live, strip + j,
                   kMaxStoreCols);
      }
      for (int64_t r = 0; r < kRows && i + r < rows; ++r) {
        const T* from = strip + r * kMaxStoreCols;
        Out* to = out + (i + r) * row_stride;
        if (col_stride == 1) {
          for (int64_t c = 0; c < cols; ++c) narrow(from[c], to[c]);
        } else {
          for (int64_t c = 0; c < cols; ++c) narrow(from[c], to[c * col_stride]);
        }
      }
    }
  }

  static void store(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                    const MatrixView& out, int64_t row, int64_t col) {
    with_typed_data(out, [&](auto* data) {
      auto* first = data + row * out.row_stride + col * out.col_stride;
      using Out = std::remove_const_t<std::remove_pointer_t<decltype(first)>>;
      store_as(p, q, rows, cols, depths, const_cast<Out*>(first), out.row_stride,
               out.col_stride);
    });
  }

  // Several independent partial sums, so that the loop vectorises without reassociation.
  static constexpr int64_t kLanes = 16;

  static double total(const double (&lanes)[kLanes]) {
    double sum = 0;
    for (double lane : lanes) sum += lane;
    return sum;
  }

  static double sum(const T* x, int64_t count) {
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += double(x[i + l]);
    }
    for (; i < count; ++i) lanes[0] += double(x[i]);
    return total(lanes);
  }

  static double dot(const T* x, const T* y, int64_t count) {
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += double(x[i + l]) * double(y[i + l]);
    }
    for (; i < count; ++i) lanes[0] += double(x[i]) * double(y[i]);
    return total(lanes);
  }

  // In two loops: GCC 12 sums unrounded values where one loop writes `out` over `row`.
  template <class From>
  static double center(const From* row, double b_i, const double* b, int64_t count, T* out) {
    for (int64_t j = 0; j < count; ++j) out[j] = T(double(row[j]) - (b_i + b[j]));
    return dot(out, out, count);
  }

  static void add_scaled(double scale, const T* x, double* y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] += scale * double(x[i]);
  }

  static constexpr Kernels<T> table() {
    return {kSliver, column_shift<T>, Pack::pack, accumulate, store, center<double>, center<T>,
            sum, dot, add_scaled, Peak<T, W, kRows * kVectors>::run};
  }
};

}  // namespace
}  // namespace pyguide::cpu
