// Inner products of centred Gram matrices, and the coefficients of their gradients.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/rounding.h"
#include "cpu/centering.h"
#include "cpu/ops.h"

namespace pyguide::cpu {
namespace {

// Entries of an inner product summed at a time. Fixed, so that the result does not depend on
// the number of threads.
constexpr int64_t kChunk = 1 << 14;

bool is_degenerate(const LayerStats& stats, DType dtype) {
  const double eps = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  return stats.trace == 0 || std::sqrt(stats.norm_squared) <= 16 * eps * stats.trace;
}

template <class T>
void alignment_of(const GramStack& grams, const LayerStats* stats, const std::vector<Pair>& pairs,
                  double* values, uint8_t* degenerate, const Kernels<T>& kernels, int threads) {
  const T* k = static_cast<const T*>(grams.data);
  const int64_t size = grams.n * grams.n;
  const int64_t chunks = ceil_div(size, kChunk);
  const int64_t count = int64_t(pairs.size());
  threads = threads_for(double(count) * double(size), threads);
  std::vector<double> partial(count * chunks);
  parallel_for(threads, count * chunks, [&](int64_t work) {
    const Pair& pair = pairs[work / chunks];
    const int64_t first = (work % chunks) * kChunk;
    partial[work] = kernels.dot(k + pair.left * size + first, k + pair.right * size + first,
                                std::min(kChunk, size - first));
  });
  for (int64_t p = 0; p < count; ++p) {
    const LayerStats& left = stats[pairs[p].left];
    const LayerStats& right = stats[pairs[p].right];
    double inner = 0;
    for (int64_t c = 0; c < chunks; ++c) inner += partial[p * chunks + c];
    const double value = inner / std::sqrt(left.norm_squared) / std::sqrt(right.norm_squared);
    // A constant layer's 0/0 is not an input's NaN: only the traces and norms tell them apart.
    const bool nan = std::isnan(left.norm_squared) || std::isnan(right.norm_squared) ||
                     std::isnan(left.trace) || std::isnan(right.trace) || std::isnan(inner);
    degenerate[p] =
        !nan && (is_degenerate(left, grams.dtype) || is_degenerate(right, grams.dtype));
    values[p] = degenerate[p] ? 0.0 : nan ? std::numeric_limits<double>::quiet_NaN() : value;
  }
}

struct Term {
  int64_t layer;
  double scale;
};

template <class T>
void coefficients_of(const GramStack& grams, const LayerStats* stats,
                     const std::vector<Pair>& pairs, const double* values,
                     const uint8_t* degenerate, const double* grad,
                     const std::vector<int64_t>& wanted, T* out, const Kernels<T>& kernels,
                     int threads) {
  const T* k = static_cast<const T*>(grams.data);
  const int64_t n = grams.n;
  std::vector<std::vector<Term>> terms(grams.layers);
  for (size_t p = 0; p < pairs.size(); ++p) {
    if (degenerate[p]) continue;
    auto add = [&](int64_t layer, int64_t other) {
      const double norm = std::sqrt(stats[layer].norm_squared);
      const double other_norm = std::sqrt(stats[other].norm_squared);
      terms[layer].push_back({other, 2 * grad[p] / norm / other_norm});
      terms[layer].push_back({layer, -2 * grad[p] * values[p] / norm / norm});
    };
    add(pairs[p].left, pairs[p].right);
    add(pairs[p].right, pairs[p].left);
  }
  const int64_t rows = int64_t(wanted.size()) * n;
  threads = threads_for(2 * double(pairs.size()) * double(n) * double(n), threads);
  parallel(threads, [&](int t) {
    constexpr int64_t kColumns = 512;
    double sums[kColumns];
    for (int64_t row = rows * t / threads; row < rows * (t + 1) / threads; ++row) {
      const int64_t w = row / n, i = row % n;
      for (int64_t j = 0; j < n; j += kColumns) {
        const int64_t cols = std::min(kColumns, n - j);
        std::fill(sums, sums + cols, 0.0);
        for (const Term& term : terms[wanted[w]]) {
          kernels.add_scaled(term.scale, k + (term.layer * n + i) * n + j, sums, cols);
        }
        T* to = out + (w * n + i) * n + j;
        for (int64_t c = 0; c < cols; ++c) to[c] = T(sums[c]);
      }
    }
  });
}

// G + G^T is formed and centred in double, and rounded once: b_i as in centering.h.
template <class T>
void symmetrize_of(const GramStack& grads, Centering centering, T* out, const Kernels<T>& kernels,
                   int threads) {
  const T* g = static_cast<const T*>(grads.data);
  const int64_t n = grads.n;
  threads = threads_for(double(grads.layers) * double(n) * double(n), threads);
  const Buffer<double> b_of_layers(grads.layers * n);
  for_each_layer(grads.layers, threads, [&](int64_t l, int layer_threads) {
    const T* from = g + l * n * n;
    T* to = out + l * n * n;
    double* b = b_of_layers.get() + l * n;
    std::fill(b, b + n, 0.0);
    if (centering == Centering::kH) {
      for (int64_t i = 0; i < n; ++i) {
        b[i] += kernels.sum(from + i * n, n) / double(n);
        kernels.add_scaled(1 / double(n), from + i * n, b, n);
      }
      double mean = 0;
      for (int64_t i = 0; i < n; ++i) mean += b[i];
      mean /= double(n);
      for (int64_t i = 0; i < n; ++i) b[i] -= mean / 2;
    }
    parallel_for(layer_threads, n, [&](int64_t i) {
      for (int64_t j = 0; j < n; ++j) {
        to[i * n + j] = T(double(from[i * n + j]) + double(from[j * n + i]) - (b[i] + b[j]));
      }
    });
  });
}

}  // namespace

void alignment(const GramStack& grams, const LayerStats* stats, const std::vector<Pair>& pairs,
               double* values, uint8_t* degenerate, const KernelSet& kernels, int threads) {
  if (grams.dtype == DType::kFloat64) {
    alignment_of(grams, stats, pairs, values, degenerate, kernels.f64, threads);
  } else {
    alignment_of(grams, stats, pairs, values, degenerate, kernels.f32, threads);
  }
}

void coefficients(const GramStack& grams, const LayerStats* stats, const std::vector<Pair>& pairs,
                  const double* values, const uint8_t* degenerate, const double* grad,
                  const std::vector<int64_t>& wanted, void* out, const KernelSet& kernels,
                  int threads) {
  if (grams.dtype == DType::kFloat64) {
    coefficients_of(grams, stats, pairs, values, degenerate, grad, wanted,
                    static_cast<double*>(out), kernels.f64, threads);
  } else {
    coefficients_of(grams, stats, pairs, values, degenerate, grad, wanted,
                    static_cast<float*>(out), kernels.f32, threads);
  }
}

void symmetrize(const GramStack& grads, Centering centering, void* out, const KernelSet& kernels,
                int threads) {
  if (grads.dtype == DType::kFloat64) {
    symmetrize_of(grads, centering, static_cast<double*>(out), kernels.f64, threads);
  } else {
    symmetrize_of(grads, centering, static_cast<float*>(out), kernels.f32, threads);
  }
}

}  // namespace pyguide::cpu
