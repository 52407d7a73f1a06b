// What the CUDA library offers to the binding that opens it: plain structs and a table of
// functions. The library shares no symbols and no C++ runtime types with its caller.
//
// Every function that can fail returns nullptr, or a message that stays valid until the thread's
// next call. Pointers are memory of `target.device` unless said otherwise (host memory in the
// emulated build); work is queued on the stream, nothing waits for it, and nothing is allocated.
// Arguments were checked by core/checks.h.
#pragma once

#include <cstdint>

#include "core/matrix_view.h"

namespace pyguide::cuda {

constexpr int kApiVersion = 1;

enum class Precision : int { kHighest = 0, kHigh = 1, kMedium = 2 };

struct Target {
  int device;
  void* stream;
};

// A stack of symmetric n x n matrices, float32 or float64, row-major. Rows are `row_stride`
// elements apart, matrices n times that.
struct Stack {
  void* data;
  DType dtype;
  int64_t matrices;
  int64_t n;
  int64_t row_stride;
};

struct Workspace {
  void* data;
  int64_t bytes;
};

// Host arrays. Matrix `layer * tokens + t` of a stack is token t of a layer; pair p of token t is
// entry `p * tokens + t` of values, degenerate and grad.
struct Pairs {
  const int64_t* left;  // indices of layers
  const int64_t* right;
  int64_t count;
  int64_t tokens;
};

struct Api {
  int version;

  // How many devices there are, at least one; else -1, and in *why what is missing (a driver, a
  // newer one, a device) and what to do.
  int (*device_count)(const char** why);

  // Compute capability as 10 * major + minor; no kernel runs below 80.
  const char* (*device_capability)(int device, int* capability);

  // Loads every kernel; once a device, before use.
  const char* (*open_device)(int device);

  // Entries of `stats` for one n x n matrix: pairs of doubles (trace, norm squared).
  int64_t (*stat_chunks)(int64_t n);

  // Bytes of workspace that gram() needs with the same arguments.
  int64_t (*gram_workspace)(const MatrixBatch* layers, int64_t count, int64_t n, Precision,
                            int device);

  // grams[m] = centred X_m X_m^T for every token of every layer; stats: (matrices, stat_chunks(n),
  // 2) doubles whose sums over the chunks are tr(Kc) and ||K°||^2, not touched for kNone.
  const char* (*gram)(const MatrixBatch* layers, int64_t count, Centering, Precision, Stack grams,
                      double* stats, Workspace, Target);

  // Bytes of workspace that alignment() needs for so many pairs and tokens.
  int64_t (*alignment_workspace)(int64_t pairs, int64_t tokens, int64_t n);

  // values[p] = <K°_left, K°_right> / (||K°_left|| ||K°_right||); 0 and degenerate[p] = 1 where a
  // layer is degenerate.
  const char* (*alignment)(Stack grams, const double* stats, Pairs, double* values,
                           uint8_t* degenerate, Workspace, Target);

  // out[w] = sum_p 2 grad_p [L°/(||K°|| ||L°||) - c_p K°/||K°||^2] over the pairs that contain
  // layer wanted[w], and bounds[w] >= the largest |entry| of out[w]. grad: float32 or float64.
  const char* (*coefficients)(Stack grams, const double* stats, Pairs, const double* values,
                              const uint8_t* degenerate, const void* grad, DType grad_dtype,
                              const int64_t* wanted, int64_t wanted_count, Stack out,
                              double* bounds, Target);

  // outs[m] = A_m (X_m - s_m), or A_m X_m if not shifted, in X's dtype. bounds[m] >= the largest
  // |entry| of A_m.
  const char* (*apply)(Stack coefficients, const double* bounds, const MatrixBatch* layers,
                       const MatrixBatch* outs, int64_t count, bool shifted, Precision, Target);
};

}  // namespace pyguide::cuda

// The library's only symbol.
extern "C" __attribute__((visibility("default"))) const pyguide::cuda::Api* pyguide_cuda_api();
