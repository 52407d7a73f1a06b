// cp.async: copies from global to shared memory that land in the background.
#pragma once

#include "cuda/device.h"

namespace pyguide::cuda::ptx {

#ifndef PYGUIDE_EMULATED
PYGUIDE_DEVICE uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}
#endif

// Copies `valid` bytes (0 to kBytes) and fills the rest of kBytes with zeros. Both addresses are
// aligned to kBytes: 4, 8 or 16. With 16 the copy bypasses L1.
template <int kBytes>
PYGUIDE_DEVICE void copy_async(void* shared, const void* global, int valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef PYGUIDE_EMULATED
  emulator::copy_async(shared, global, kBytes, valid);
#else
  const uint32_t to = shared_address(shared);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global),
                 "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(valid)
                 : "memory");
  }
#endif
}

// Closes the group of this thread's copies since the last commit.
PYGUIDE_DEVICE void commit_copies() {
#ifdef PYGUIDE_EMULATED
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's youngest groups are under way. Other threads see
// the data after the next barrier. `site` as in block_barrier.
template <int kPending>
PYGUIDE_DEVICE void wait_for_copies([[maybe_unused]] const char* site) {
#ifdef PYGUIDE_EMULATED
  emulator::wait_for_copies(kPending, site);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

}  // namespace pyguide::cuda::ptx
