// The register tile: kRows x (kVectors * W) sums held in vector registers.
//
// Templated on the vector width through the compiler's vector extensions; internal linkage,
// because each instruction set compiles its own copy.
#pragma once

#include <cstdint>

namespace pyguide::cpu {
namespace {

template <class T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};

// Sums that stay in registers from the first multiply-add to the last: how fast these units are
// when nothing is loaded. Every sum goes to a fixed point near 1. Returns the multiply-adds done,
// and one of the sums in *sum, which held the factor.
template <class T, int W, int kSums>
struct Peak {
  static inline int64_t run(int64_t steps, T* sum) {
    using Vector = typename VectorOf<T, W>::type;
    Vector sums[kSums];
    const Vector factor = *sum - Vector{}, addend = T(1) - factor;
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] = T(i) - Vector{};
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + addend;
    }
    for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
    *sum = sums[0][0];
    return steps * kSums * W;
  }
};

template <class T, int W, int kRows, int kVectors>
struct MicroKernel {
  using Vector = typename VectorOf<T, W>::type;
  static constexpr int64_t kSliver = W * kVectors;
  static_assert(kSliver % kRows == 0, "a row tile must not straddle two slivers");

  // tile[r * ld + c] = sum_k p[k * kSliver + r] * q[k * kSliver + c] for c < vectors * W. Both
  // operands have the sliver layout, so one packing serves as either side of a Gram.
  static inline void run(const T* p, const T* q, int64_t depths, int64_t vectors, T* tile,
                         int64_t ld) {
    if (vectors >= kVectors) return run_vectors<kVectors>(p, q, depths, tile, ld);
    if constexpr (kVectors > 2) {
      if (vectors == 2) return run_vectors<2>(p, q, depths, tile, ld);
    }
    run_vectors<1>(p, q, depths, tile, ld);
  }

 private:
  static constexpr int64_t kChain = 128;
  static_assert(kVectors == 2 || kVectors == 3, "run() knows these");

  // Two levels of sums: one chain of 512 float32 additions loses 2-3 times what torch's own
  // product does; chains of 128 lose no more, and cost 1 % of the time (AVX2 on Zen 1).
  template <int kLive>
  static inline void run_vectors(const T* p, const T* q, int64_t depths, T* tile, int64_t ld) {
    run_chain<kLive, false>(p, q, depths < kChain ? depths : kChain, tile, ld);
    for (int64_t k = kChain; k < depths; k += kChain) {
      const int64_t chain = depths - k < kChain ? depths - k : kChain;
      run_chain<kLive, true>(p + k * kSliver, q + k * kSliver, chain, tile, ld);
    }
  }

  template <int kLive, bool kAdd>
  static inline void run_chain(const T* p, const T* q, int64_t depths, T* tile, int64_t ld) {
    Vector sums[kRows][kLive];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kLive; ++v) sums[r][v] = Vector{};
    }
    for (int64_t k = 0; k < depths; ++k) {
      Vector columns[kLive];
#pragma GCC unroll 4
      for (int v = 0; v < kLive; ++v) {
        columns[v] = *reinterpret_cast<const Vector*>(q + v * W);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        // Compiles to one broadcast from memory: x - 0 is x for every x, but x + 0 is not for -0,
        // and that addition cost a fifth of the speed.
        const Vector row = p[r] - Vector{};
#pragma GCC unroll 4
        for (int v = 0; v < kLive; ++v) sums[r][v] += row * columns[v];
      }
      p += kSliver;
      q += kSliver;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kLive; ++v) {
        Vector* to = reinterpret_cast<Vector*>(tile + r * ld + v * W);
        *to = kAdd ? *to + sums[r][v] : sums[r][v];
      }
    }
  }
};

}  // namespace
}  // namespace pyguide::cpu
