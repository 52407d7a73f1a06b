// Kernels with the faults that test_compile_gates.py must find: what each gate is for.
#include "cuda/launch.h"
#include "cuda/ptx/barrier.h"

namespace pyguide::cuda {

struct Numbers {
  float* data;
  int count;
};

template <int kCount>
struct ManyNumbers {
  Numbers each[kCount];
};

template <int kFloats>
struct Memory {
  float data[kFloats];
};

// Holds kLive numbers of a thread at once.
template <int kLive>
PYGUIDE_DEVICE void reverse(const Numbers& p) {
  float* mine = p.data + thread_index();
  float x[kLive];
  PYGUIDE_UNROLL for (int i = 0; i < kLive; ++i) x[i] = mine[i * p.count];
  ptx::block_barrier("loaded");
  PYGUIDE_UNROLL for (int i = 0; i < kLive; ++i) mine[i * p.count] = x[kLive - 1 - i];
}

struct Clean {
  using Params = Numbers;
  using Shared = Memory<1>;
  static constexpr int kThreads = 128, kBlocksPerSm = 2;
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) { reverse<4>(p); }
};

struct Spills {
  using Params = Numbers;
  using Shared = Memory<1>;
  static constexpr int kThreads = 1024, kBlocksPerSm = 2;
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) { reverse<64>(p); }
};

struct LocalArray {
  using Params = Numbers;
  using Shared = Memory<1>;
  static constexpr int kThreads = 128, kBlocksPerSm = 2;
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i * p.count % 16] = p.data[i];
    p.data[thread_index()] = x[thread_index() % 16];
  }
};

// A multiprocessor has 2,048 threads at most; ptxas ignores a claim beyond.
struct Crowded {
  using Params = Numbers;
  using Shared = Memory<1>;
  static constexpr int kThreads = 1024, kBlocksPerSm = 4;
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) { reverse<4>(p); }
};

// By its name it should use the tensor cores, and copy in the background.
struct GramPartialTf32 {
  using Params = Numbers;
  using Shared = Memory<1>;
  static constexpr int kThreads = 128, kBlocksPerSm = 2;
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) { reverse<4>(p); }
};

struct Large {
#ifdef PLANT_LARGE_PARAMETERS
  using Params = ManyNumbers<2048>;
#else
  using Params = ManyNumbers<2047>;
#endif
#ifdef PLANT_LARGE_BLOCK
  using Shared = Memory<99 * 256 + 1>;
#else
  using Shared = Memory<48 * 256>;
#endif
  static constexpr int kThreads = 128;
#ifdef PLANT_LARGE_BLOCKS
  static constexpr int kBlocksPerSm = 5;
#else
  static constexpr int kBlocksPerSm = 1;
#endif
  PYGUIDE_DEVICE static void run(const Params& p, Shared&) { reverse<4>(p.each[0]); }
};

const char* planted(void* stream) {
  launch<Clean>(1, {}, stream);
  launch<Spills>(1, {}, stream);
  launch<LocalArray>(1, {}, stream);
  launch<Crowded>(1, {}, stream);
  launch<GramPartialTf32>(1, {}, stream);
  return launch<Large>(1, {}, stream);
}

}  // namespace pyguide::cuda
