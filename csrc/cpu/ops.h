// The CPU backend's entry points. All pointers are host memory that the caller owns; all work
// happens before the call returns. Results depend on the input, the instruction set and
// `threads` only. Arguments are not checked here but by core/checks.h. Workspace is released on
// every path (core/block_cache.h says what the thread keeps); std::bad_alloc is thrown before any
// thread is started.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.h"
#include "cpu/kernels.h"

namespace pyguide::cpu {

// A stack of L symmetric n x n matrices, contiguous and row-major; float32 or float64.
struct GramStack {
  void* data;
  DType dtype;
  int64_t layers;
  int64_t n;
};

struct LayerStats {
  double trace;         // tr(Kc), the H-centred trace
  double norm_squared;  // ||K°||^2
};

// grams[l] = centred X_l X_l^T. With a centring the shift is subtracted first and `stats`, one
// entry a layer, is filled; without, stats is not touched and may be null.
//
// Work is split into blocks of at most 256 x 256 results; workspace is at most 4 MiB a thread (in
// blocks of up to 6 MiB), and 16 bytes times n a layer when n > 256.
void gram(const std::vector<MatrixView>& layers, Centering centering, const GramStack& grams,
          LayerStats* stats, const KernelSet& kernels, int threads);

struct Pair {
  int64_t left, right;  // indices into the stack
};

// values[p] = <K°_left, K°_right> / (||K°_left|| ||K°_right||). A pair with a degenerate layer
// has value 0 and degenerate[p] = 1, unless the formula gives NaN. Workspace: n^2/2048 bytes a
// pair.
void alignment(const GramStack& grams, const LayerStats* stats, const std::vector<Pair>& pairs,
               double* values, uint8_t* degenerate, const KernelSet& kernels, int threads);

// For each wanted layer w the n x n matrix A with d(sum_p grad_p c_p)/dX_w = A X_w:
//   A = sum_p 2 grad_p [L°/(||K°|| ||L°||) - c_p K°/||K°||^2]
// over the pairs that contain w; degenerate pairs give nothing.
void coefficients(const GramStack& grams, const LayerStats* stats, const std::vector<Pair>& pairs,
                  const double* values, const uint8_t* degenerate, const double* grad,
                  const std::vector<int64_t>& wanted, void* out, const KernelSet& kernels,
                  int threads);

// out[l] = G + G^T, and its H-centring with Centering::kH: the coefficients of gram's gradient.
// Workspace: 8 bytes times n a layer.
void symmetrize(const GramStack& grads, Centering centering, void* out, const KernelSet& kernels,
                int threads);

struct ApplyProblem {
  const void* coefficients;  // n x n, symmetric, of the stack's dtype
  MatrixView x;              // n x d
  MatrixView out;            // n x d, any strides
};

// out = A (X - s), or A X if not shifted; all problems have the same n. A's rows sum to zero
// whenever `shifted` is used, so the shift changes nothing but the rounding. Workspace is at most
// 3 MiB a thread (in blocks of up to 5 MiB).
void apply(const std::vector<ApplyProblem>& problems, DType coefficient_dtype, bool shifted,
           const KernelSet& kernels, int threads);

// Runs `steps` float32 multiply-adds for each of a tile's vector registers on every thread,
// touching no memory, and returns the FLOPs: the benchmarks time it.
double fma_peak(int64_t steps, const KernelSet& kernels, int threads);

}  // namespace pyguide::cpu
