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

}  // namespace pyguide::cuda
