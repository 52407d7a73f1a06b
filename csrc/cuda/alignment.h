// Inner products of centred Gram matrices, and the coefficients of their gradients.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "cuda/reduction.h"
#include "cuda/work.h"

namespace pyguide::cuda {

struct LayerStats {
  double trace;         // tr(Kc)
  double norm_squared;  // ||K°||^2
};

// Adds up what the blocks of gram_finish found; a warp together.
PYGUIDE_DEVICE LayerStats stats_of(const double* stats, int64_t matrix, int chunks) {
  double trace = 0, norm = 0;
  for (int c = lane_index(); c < chunks; c += kWarp) {
    trace += stats[(matrix * chunks + c) * 2];
    norm += stats[(matrix * chunks + c) * 2 + 1];
  }
  return {ptx::warp_sum(trace), ptx::warp_sum(norm)};
}

PYGUIDE_DEVICE bool is_nan(double x) { return x != x; }

struct AlignmentParams {
  const void* grams;
  const double* stats;
  double* partial;  // (pairs, tokens, chunks), where there are several chunks
  double* values;
  uint8_t* degenerate;
  int64_t n;
  int64_t first_pair;  // of the launch
  int32_t pairs;
  int32_t tokens;
  int32_t chunks;  // blocks of a pair's inner product
  int32_t stat_chunks;
  double epsilon;  // of the Gram matrices' accumulation
  int32_t left[kMaxPairs];
  int32_t right[kMaxPairs];
};

// The value of a pair from its inner product; a warp together.
PYGUIDE_DEVICE void finish_pair(const AlignmentParams& p, int64_t local, double inner) {
  const int64_t pair = local / p.tokens, token = local % p.tokens;
  const auto left = stats_of(p.stats, p.left[pair] * int64_t(p.tokens) + token, p.stat_chunks);
  const auto right = stats_of(p.stats, p.right[pair] * int64_t(p.tokens) + token, p.stat_chunks);
  if (lane_index() != 0) return;
  auto is_degenerate = [&](const LayerStats& stats) {
    return stats.trace == 0 || sqrt(stats.norm_squared) <= 16 * p.epsilon * stats.trace;
  };
  // A constant layer's 0/0 is not an input's NaN: only the traces and norms tell them apart.
  const bool nan = is_nan(left.norm_squared) || is_nan(right.norm_squared) ||
                   is_nan(left.trace) || is_nan(right.trace) || is_nan(inner);
  const bool degenerate = !nan && (is_degenerate(left) || is_degenerate(right));
  const double value = inner / sqrt(left.norm_squared) / sqrt(right.norm_squared);
  const int64_t at = (p.first_pair + pair) * p.tokens + token;
  p.degenerate[at] = degenerate;
  p.values[at] = degenerate ? 0.0 : nan ? double(NAN) : value;
}

// One chunk of one pair's inner product, and the pair's value where that is all of it.
template <class T>
struct Alignment {
  using Params = AlignmentParams;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  struct Shared {
    double scratch[kThreads / kWarp];
  };

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t local = block_index() / p.chunks, chunk = block_index() % p.chunks;
    const int64_t pair = local / p.tokens, token = local % p.tokens;
    const int64_t size = p.n * p.n;
    const T* grams = static_cast<const T*>(p.grams);
    const T* left = grams + (p.left[pair] * int64_t(p.tokens) + token) * size;
    const T* right = grams + (p.right[pair] * int64_t(p.tokens) + token) * size;
    const int64_t last = size * (chunk + 1) / p.chunks;
    double sum = 0;
#ifndef PYGUIDE_EMULATED
#pragma unroll 8
#endif
    for (int64_t e = size * chunk / p.chunks + thread_index(); e < last; e += kThreads) {
      sum += double(left[e]) * double(right[e]);
    }
    sum = block_sum<kThreads>(sum, shared.scratch);
    if (warp_index() != 0) return;
    if (p.chunks == 1) {
      finish_pair(p, local, sum);
    } else if (lane_index() == 0) {
      p.partial[(p.first_pair * p.tokens + local) * p.chunks + chunk] = sum;
    }
  }
};

// The values of pairs whose inner products came in chunks, a warp each.
struct AlignmentFinish {
  using Params = AlignmentParams;
  static constexpr int kThreads = 32;
  static constexpr int kBlocksPerSm = 16;
  struct Shared {
    char unused;
  };

  PYGUIDE_DEVICE static void run(const Params& p, Shared&) {
    const int64_t local = block_index();
    double sum = 0;
    for (int c = lane_index(); c < p.chunks; c += kWarp) {
      sum += p.partial[(p.first_pair * p.tokens + local) * p.chunks + c];
    }
    finish_pair(p, local, ptx::warp_sum(sum));
  }
};

struct CoefficientParams {
  struct Layer {
    int32_t layer;
    int32_t first_term, last_term;
    int64_t out;    // of the layer's first token, in matrices
    bool continued;  // adds to what an earlier launch left
  };
  struct Term {
    int32_t pair;
    int32_t other;  // the layer that the pair compares with
  };
  const void* grams;
  const double* stats;
  const double* values;
  const uint8_t* degenerate;
  const void* grad;
  bool grad_in_double;
  void* out;
  double* bounds;
  int64_t n;
  int64_t row_stride;  // of out; beyond n it is filled with zeros
  int32_t tokens;
  int32_t stat_chunks;
  int32_t chunks;  // blocks of a matrix
  Layer layer[kMaxLayers];
  Term term[kMaxPairs];
};

// A = sum_p 2 grad_p [L°/(||K°|| ||L°||) - c_p K°/||K°||^2] over the pairs of one layer, for some
// rows of A.
template <class T>
struct Coefficients {
  using Params = CoefficientParams;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static constexpr int kTerms = kThreads;  // taken together
  struct Shared {
    double scratch[kThreads / kWarp];
    double cross[kTerms];
    double own[kTerms];
    double bound[kTerms];
  };

  PYGUIDE_DEVICE static double norm_of(const Params& p, int64_t matrix) {
    return sqrt(sum_of(p.stats + matrix * p.stat_chunks * 2 + 1, 2, p.stat_chunks));
  }

  // The factors of L° and K° that one pair contributes.
  PYGUIDE_DEVICE static void write_term(const Params& p, const CoefficientParams::Term& term,
                                        int64_t token, double norm, Shared& shared) {
    const int64_t pair = term.pair * int64_t(p.tokens) + token;
    const int t = thread_index();
    shared.cross[t] = shared.own[t] = shared.bound[t] = 0;
    if (p.degenerate[pair]) return;
    const double grad = p.grad_in_double ? static_cast<const double*>(p.grad)[pair]
                                         : double(static_cast<const float*>(p.grad)[pair]);
    const double other = norm_of(p, term.other * int64_t(p.tokens) + token);
    shared.cross[t] = 2 * grad / norm / other;
    shared.own[t] = -2 * grad * p.values[pair] / norm / norm;
    shared.bound[t] = fabs(shared.cross[t]) * other + fabs(shared.own[t]) * norm;
  }

  PYGUIDE_DEVICE static const T* gram_of(const Params& p, int64_t layer, int64_t token) {
    return static_cast<const T*>(p.grams) + (layer * p.tokens + token) * p.n * p.n;
  }

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t matrix = block_index() / p.chunks, chunk = block_index() % p.chunks;
    const auto& layer = p.layer[matrix / p.tokens];
    const int64_t token = matrix % p.tokens;
    const T* own = gram_of(p, layer.layer, token);
    const int64_t out_matrix = layer.out + token;
    T* out = static_cast<T*>(p.out) + out_matrix * p.n * p.row_stride;
    const int64_t first_row = p.n * chunk / p.chunks;
    const int64_t rows = p.n * (chunk + 1) / p.chunks - first_row;
    const double norm = norm_of(p, layer.layer * int64_t(p.tokens) + token);
    double bound = layer.continued && chunk == 0 ? p.bounds[out_matrix] : 0;
    bool continued = layer.continued;
    int term = layer.first_term;
    do {
      const int terms = layer.last_term - term < kTerms ? layer.last_term - term : kTerms;
      ptx::block_barrier("coefficients: terms free");
      if (thread_index() < terms) write_term(p, p.term[term + thread_index()], token, norm, shared);
      ptx::block_barrier("coefficients: terms written");
      double own_scale = 0;
      for (int t = 0; t < terms; ++t) {
        own_scale += shared.own[t];
        bound += shared.bound[t];
      }
      // Of the chunk alone, so that 32 bits count them: a division of 64 takes many times as long.
      const uint32_t stride = uint32_t(p.row_stride), entries = uint32_t(rows) * stride;
      for (uint32_t entry = thread_index(); entry < entries; entry += kThreads) {
        const int64_t row = first_row + entry / stride, col = entry % stride;
        const int64_t e = first_row * p.row_stride + entry;
        double sum = continued ? double(out[e]) : 0;
        if (col < p.n) {
          const int64_t at = row * p.n + col;
          // A layer without pairs that count has no gradient, whatever its Gram matrix holds.
          if (own_scale != 0) sum += own_scale * double(own[at]);
          for (int t = 0; t < terms; ++t) {
            if (shared.cross[t] == 0) continue;
            sum += shared.cross[t] * double(gram_of(p, p.term[term + t].other, token)[at]);
          }
        }
        out[e] = T(sum);
      }
      continued = true;
      term += terms;
    } while (term < layer.last_term);
    if (chunk == 0 && thread_index() == 0) p.bounds[out_matrix] = bound;
  }
};

}  // namespace pyguide::cuda
