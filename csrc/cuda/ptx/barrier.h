// Waiting for the other threads of a block.
#pragma once

#include "cuda/device.h"

namespace pyguide::cuda::ptx {

// `site` names the barrier: the emulator can leave out one site, and the tests must notice.
PYGUIDE_DEVICE void block_barrier([[maybe_unused]] const char* site) {
#ifdef PYGUIDE_EMULATED
  emulator::block_barrier(site);
#else
  __syncthreads();
#endif
}

}  // namespace pyguide::cuda::ptx
