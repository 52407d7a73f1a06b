// Centring of symmetric n x n matrices; all sums are in double.
#pragma once

#include <cstdint>

#include "core/matrix_view.h"
#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace pyguide::cpu {

template <class T>
double center_row(const T* row, double b_i, const double* b, int64_t count, T* out,
                  const Kernels<T>& kernels) {
  return kernels.center(row, b_i, b, count, out);
}
inline double center_row(const double* row, double b_i, const double* b, int64_t count, float* out,
                         const Kernels<float>& kernels) {
  return kernels.center_sums(row, b_i, b, count, out);
}

// Writes the centred form of K to `to` (row-major, contiguous), rounding once, and returns its
// statistics. `from` has leading dimension `ld`; it may be `to` itself. `scratch` holds 2n.
//
// Both centrings have the form K_ij - (b_i + b_j), so the result is symmetric to the last bit:
//   H: b_i = r_i/n - m/2, with r the row sums and m the mean of all entries;
//   U: b_i = (that) - Kc_ii/(n-2) + tr(Kc)/(2(n-1)(n-2)), and a zero diagonal. It is written in
//      the H-centred matrix, whose row sums without the diagonal are -Kc_ii.
template <class From, class To>
LayerStats center(const From* from, int64_t ld, To* to, int64_t n, Centering centering,
                  double* scratch, const KernelSet& kernels, int threads) {
  double* b = scratch;
  double* row_norm = scratch + n;
  parallel_for(threads, n, [&](int64_t i) {
    b[i] = kernels_for<From>(kernels).sum(from + i * ld, n) / double(n);
  });
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += b[i];
  mean /= double(n);
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) {
    b[i] -= mean / 2;
    trace += double(from[i * ld + i]) - 2 * b[i];
  }
  const bool zero_diagonal = centering == Centering::kU;
  if (zero_diagonal) {
    const double grand = trace / (2 * double(n - 1) * double(n - 2));
    for (int64_t i = 0; i < n; ++i) {
      const double diagonal = double(from[i * ld + i]) - 2 * b[i];
      b[i] += grand - diagonal / double(n - 2);
    }
  }
  parallel_for(threads, n, [&](int64_t i) {
    const From* row = from + i * ld;
    To* out = to + i * n;
    auto center = [&](int64_t first, int64_t last) {
      return center_row(row + first, b[i], b + first, last - first, out + first,
                        kernels_for<To>(kernels));
    };
    if (zero_diagonal) {
      row_norm[i] = center(0, i) + center(i + 1, n);
      out[i] = To(0);
    } else {
      row_norm[i] = center(0, n);
    }
  });
  double norm_squared = 0;
  for (int64_t i = 0; i < n; ++i) norm_squared += row_norm[i];
  return {trace, norm_squared};
}

// Runs one job a layer: side by side when there are many layers, else each with all threads.
template <class Job>
void for_each_layer(int64_t layers, int threads, Job&& job) {
  if (layers >= 2 * int64_t(threads)) {
    parallel_for(threads, layers, [&](int64_t l) { job(l, 1); });
  } else {
    for (int64_t l = 0; l < layers; ++l) job(l, threads);
  }
}

}  // namespace pyguide::cpu
