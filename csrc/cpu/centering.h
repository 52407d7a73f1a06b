// Centring of a symmetric n x n matrix in place, with its trace and norm; sums are in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace pyguide::cpu {

// Both centrings have the form K_ij - (b_i + b_j), so the result is symmetric to the last bit:
//   H: b_i = r_i/n - m/2, with r the row sums and m the mean of all entries;
//   U: b_i = (that) - Kc_ii/(n-2) + tr(Kc)/(2(n-1)(n-2)), and a zero diagonal. It is written in
//      the H-centred matrix, whose row sums without the diagonal are -Kc_ii.
template <class T>
LayerStats center_in_place(T* k, int64_t n, Centering centering, const Kernels<T>& kernels,
                           int threads) {
  std::vector<double> b(n), row_norm(n);
  parallel_for(threads, n, [&](int64_t i) { b[i] = kernels.sum(k + i * n, n) / double(n); });
  double mean = 0;
  for (double row_mean : b) mean += row_mean;
  mean /= double(n);
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) {
    b[i] -= mean / 2;
    trace += double(k[i * n + i]) - 2 * b[i];
  }
  const bool zero_diagonal = centering == Centering::kU;
  if (zero_diagonal) {
    const double grand = trace / (2 * double(n - 1) * double(n - 2));
    for (int64_t i = 0; i < n; ++i) {
      const double diagonal = double(k[i * n + i]) - 2 * b[i];
      b[i] += grand - diagonal / double(n - 2);
    }
  }
  parallel_for(threads, n, [&](int64_t i) {
    T* row = k + i * n;
    for (int64_t j = 0; j < n; ++j) row[j] = T(double(row[j]) - (b[i] + b[j]));
    if (zero_diagonal) row[i] = T(0);
    row_norm[i] = kernels.dot(row, row, n);
  });
  double norm_squared = 0;
  for (double norm : row_norm) norm_squared += norm;
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
