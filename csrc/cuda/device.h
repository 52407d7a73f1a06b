// How a kernel is written, so that nvcc compiles it for GPUs and g++ for the emulator.
//
// A kernel is a struct with
//   Params               passed by value as a __grid_constant__ parameter
//   Shared               its shared memory, one dynamic struct
//   kThreads             threads of a block, a multiple of 32
//   kBlocksPerSm         blocks that must fit a multiprocessor's registers
//   static void run(const Params&, Shared&)
// and is started by launch() in launch.h. Bodies contain no asm: every instruction that C++ has
// no word for is a wrapper in ptx/, which has a second branch for the emulator.
#pragma once

#include <cstdint>

#ifdef PYGUIDE_EMULATED
#include "emulator.h"
#define PYGUIDE_DEVICE inline
#define PYGUIDE_UNROLL
#define PYGUIDE_NO_UNROLL
#else
#define PYGUIDE_DEVICE __device__ __forceinline__
#define PYGUIDE_UNROLL _Pragma("unroll")
#define PYGUIDE_NO_UNROLL _Pragma("unroll 1")
#endif

namespace pyguide::cuda {

constexpr int kWarp = 32;

#ifdef PYGUIDE_EMULATED
PYGUIDE_DEVICE int thread_index() { return emulator::thread_index(); }
PYGUIDE_DEVICE int64_t block_index() { return emulator::block_index(); }
#else
PYGUIDE_DEVICE int thread_index() { return int(threadIdx.x); }
PYGUIDE_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }
#endif

PYGUIDE_DEVICE int lane_index() { return thread_index() % kWarp; }
PYGUIDE_DEVICE int warp_index() { return thread_index() / kWarp; }

}  // namespace pyguide::cuda
