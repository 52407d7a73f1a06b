// The one place where kernels start.
#pragma once

#include "cuda/device.h"

#ifndef PYGUIDE_EMULATED
#include <cuda_runtime.h>
#endif

namespace pyguide::cuda {

#ifdef PYGUIDE_EMULATED

// Returns nullptr, or what went wrong. The stream means nothing: the work is done on return.
template <class Kernel>
const char* launch(int64_t blocks, const typename Kernel::Params& params, void*) {
  return emulator::launch<Kernel>(blocks, params);
}

template <class Kernel>
const char* prepare() {
  return emulator::prepare<Kernel>();
}

#else

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSm)
    kernel(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(128) unsigned char shared[];
  Kernel::run(params, *reinterpret_cast<typename Kernel::Shared*>(shared));
}

// Loads the kernel on the current device and allows its blocks their shared memory: once a device,
// before any capture. Returns nullptr, or what went wrong.
template <class Kernel>
const char* prepare() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel<Kernel>);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 sizeof(typename Kernel::Shared));
  }
  // One block would fit a smaller share of the L1 cache than kBlocksPerSm do.
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Kernel>
const char* launch(int64_t blocks, const typename Kernel::Params& params, void* stream) {
  static_assert(sizeof(typename Kernel::Params) <= 32764, "kernel parameters take 32,764 bytes");
  static_assert(sizeof(typename Kernel::Shared) <= 101376, "99 KB is what every sm_80+ block gets");
  // On sm_90; sm_80 has 164 KB, and holds fewer of the largest blocks. The 1 KB is the system's.
  static_assert((sizeof(typename Kernel::Shared) + 1024) * Kernel::kBlocksPerSm <= 228 * 1024,
                "the shared memory of kBlocksPerSm blocks does not fit a multiprocessor");
  if (blocks > INT32_MAX) return "too many blocks for one launch: pass fewer pairs or tokens";
  kernel<Kernel><<<unsigned(blocks), Kernel::kThreads, sizeof(typename Kernel::Shared),
                   static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#endif

}  // namespace pyguide::cuda
