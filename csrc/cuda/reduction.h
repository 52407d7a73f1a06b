// Sums over a block, in an order that never changes.
#pragma once

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/warp.h"

namespace pyguide::cuda {

// The sum of every thread's value, in every thread. `scratch` holds a double a warp.
template <int kThreads>
PYGUIDE_DEVICE double block_sum(double value, double* scratch) {
  constexpr int kWarps = kThreads / kWarp;
  value = ptx::warp_sum(value);
  ptx::block_barrier("sum: scratch free");
  if (lane_index() == 0) scratch[warp_index()] = value;
  ptx::block_barrier("sum: warps done");
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += scratch[w];
  return total;
}

// Sum of values a step apart, in their order. Their addresses do not depend on the sum, and many
// are read before the first is added, so that the wait for memory is not one for each.
template <class T>
PYGUIDE_DEVICE double sum_of(const T* from, int64_t step, int count) {
  constexpr int kAtOnce = 16;
  double sum = 0;
  int s = 0;
  for (; s + kAtOnce <= count; s += kAtOnce) {
    T read[kAtOnce];
    PYGUIDE_UNROLL
    for (int k = 0; k < kAtOnce; ++k) read[k] = from[(s + k) * step];
    PYGUIDE_UNROLL
    for (int k = 0; k < kAtOnce; ++k) sum += double(read[k]);
  }
  for (; s < count; ++s) sum += double(from[s * step]);
  return sum;
}

}  // namespace pyguide::cuda
