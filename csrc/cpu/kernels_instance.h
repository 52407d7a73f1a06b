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

  // Calls body(i, j, tile) for every register tile of P Q^T; the slivers of Q stay in L1 while
  // P streams from L2.
  template <class Body>
  static inline void for_each_tile(const T* p, const T* q, int64_t rows, int64_t cols,
                                   int64_t depths, bool lower, Body&& body) {
    alignas(64) T tile[kRows * kSliver];
    for (int64_t j = 0; j < cols; j += kSliver) {
      const T* q_sliver = q + j * depths;
      const int64_t first = lower ? j : 0;
      for (int64_t i = first; i < rows; i += kRows) {
        const T* p_rows = p + (i / kSliver) * kSliver * depths + i % kSliver;
        Micro::run(p_rows, q_sliver, depths, tile);
        body(i, j, tile);
      }
    }
  }

  static void accumulate(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                         bool lower, double* sums, int64_t ld) {
    for_each_tile(p, q, rows, cols, depths, lower, [&](int64_t i, int64_t j, const T* tile) {
      for (int64_t r = 0; r < kRows; ++r) {
        double* to = sums + (i + r) * ld + j;
        for (int64_t c = 0; c < kSliver; ++c) to[c] += double(tile[r * kSliver + c]);
      }
    });
  }

  template <class Out>
  static void store_as(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                       Out* out, int64_t row_stride, int64_t col_stride) {
    for_each_tile(p, q, rows, cols, depths, false, [&](int64_t i, int64_t j, const T* tile) {
      const int64_t live_rows = rows - i < kRows ? rows - i : kRows;
      const int64_t live_cols = cols - j < kSliver ? cols - j : kSliver;
      for (int64_t r = 0; r < live_rows; ++r) {
        Out* to = out + (i + r) * row_stride + j * col_stride;
        const T* from = tile + r * kSliver;
        if (col_stride == 1 && live_cols == kSliver) {
          for (int64_t c = 0; c < kSliver; ++c) narrow(from[c], to[c]);
        } else {
          for (int64_t c = 0; c < live_cols; ++c) narrow(from[c], to[c * col_stride]);
        }
      }
    });
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

  static void add_scaled(double scale, const T* x, double* y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] += scale * double(x[i]);
  }

  static constexpr Kernels<T> table() {
    return {kSliver, column_shift<T>, Pack::pack, accumulate, store, sum, dot, add_scaled};
  }
};

}  // namespace
}  // namespace pyguide::cpu
