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

template <class T, int W, int kRows, int kVectors>
struct MicroKernel {
  using Vector = typename VectorOf<T, W>::type;
  static constexpr int64_t kSliver = W * kVectors;
  static_assert(kSliver % kRows == 0, "a row tile must not straddle two slivers");

  // tile[r][c] = sum_k p[k * kSliver + r] * q[k * kSliver + c]. Both operands have the sliver
  // layout, so one packing serves as either side of a Gram.
  static inline void run(const T* p, const T* q, int64_t depths, T* tile) {
    Vector sums[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
    }
    for (int64_t k = 0; k < depths; ++k) {
      Vector columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = *reinterpret_cast<const Vector*>(q + v * W);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vector row = Vector{} + p[r];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] += row * columns[v];
      }
      p += kSliver;
      q += kSliver;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        *reinterpret_cast<Vector*>(tile + r * kSliver + v * W) = sums[r][v];
      }
    }
  }
};

}  // namespace
}  // namespace pyguide::cpu
