// Exchanging values among the lanes of a warp.
#pragma once

#include <cstring>

#include "cuda/device.h"

namespace pyguide::cuda::ptx {

// The value of lane `lane ^ mask`. All 32 lanes take part.
template <class T>
PYGUIDE_DEVICE T shuffle_xor(T value, int mask) {
#ifdef PYGUIDE_EMULATED
  return emulator::shuffle_xor(value, mask);
#else
  return __shfl_xor_sync(0xffffffffu, value, mask);
#endif
}

// The sum over all lanes, in every lane, in the same order.
PYGUIDE_DEVICE double warp_sum(double value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace pyguide::cuda::ptx
