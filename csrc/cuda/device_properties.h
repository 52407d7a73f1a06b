// What the work is planned for.
#pragma once

#ifndef PYGUIDE_EMULATED
#include <cuda_runtime.h>
#endif

namespace pyguide::cuda {

#ifdef PYGUIDE_EMULATED
inline int multiprocessors(int) { return 2; }
#else
inline int multiprocessors(int device) {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}
#endif

}  // namespace pyguide::cuda
