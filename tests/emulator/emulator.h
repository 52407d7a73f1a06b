// Runs kernels on the CPU, so that their own source is tested without a GPU: what csrc/cuda calls
// when it is compiled with PYGUIDE_EMULATED.
//
// The threads of a block are fibers. They run one at a time in a seeded random order and change
// places only where they wait for each other, so a missing barrier shows as a wrong result. What a
// GPU would leave undefined is a fault: launch() stops the block and returns what went wrong.
// It cannot see what depends on the memory model, bank conflicts, registers or speed.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "conversions.h"

namespace pyguide::cuda::emulator {

constexpr int kWarpLanes = 32;

struct Launch {
  const char* kernel;  // typeid's name
  bool prepared;
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
  void (*run)(const void* params, void* shared);
  const void* params;
};

// Runs the blocks one after another, in random order. Returns nullptr, or what went wrong, which
// stays valid until the thread's next launch.
const char* run(const Launch& launch);

template <class Kernel>
inline bool is_prepared = false;

template <class Kernel>
const char* prepare() {
  is_prepared<Kernel> = true;
  return nullptr;
}

template <class Kernel>
const char* launch(int64_t blocks, const typename Kernel::Params& params) {
  using Params = typename Kernel::Params;
  using Shared = typename Kernel::Shared;
  static_assert(sizeof(Params) <= 32764, "kernel parameters take 32,764 bytes");
  static_assert(sizeof(Shared) <= 101376, "99 KB is what every sm_80+ block gets");
  static_assert(alignof(Shared) <= 128, "shared memory is aligned to 128 bytes");
  static_assert(std::is_trivial_v<Shared>, "nothing constructs shared memory");
  static_assert(Kernel::kThreads % kWarpLanes == 0 && Kernel::kThreads <= 1024,
                "a block has 1 to 32 whole warps");
  const auto body = [](const void* params, void* shared) {
    Kernel::run(*static_cast<const Params*>(params), *static_cast<Shared*>(shared));
  };
  return run({typeid(Kernel).name(), is_prepared<Kernel>, blocks, Kernel::kThreads,
              int64_t(sizeof(Shared)), body, &params});
}

// The running thread's coordinates.
struct Position {
  int thread;
  int64_t block;
};
extern __attribute__((visibility("hidden"))) Position position;
inline int thread_index() { return position.thread; }
inline int64_t block_index() { return position.block; }

void block_barrier(const char* site);

void copy_async(void* shared, const void* global, int bytes, int valid);
void commit_copies();
void wait_for_copies(int pending, const char* site);

// An operation that a warp's lanes do together. `run` gets every lane's arguments.
struct Collective {
  const char* name;
  void (*run)(void* const* arguments);
};
extern const Collective kShuffleXor, kLoadMatrices, kLoadMatricesTransposed, kMmaBf16, kMmaF16,
    kMmaTf32, kMmaF64;

// Returns once all lanes of the warp have arrived and the last of them has run the operation.
void arrive(const Collective& operation, void* arguments);

struct ShuffleArguments {
  void* value;
  int bytes;
  int mask;
};

template <class T>
T shuffle_xor(T value, int mask) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "lanes exchange 4 or 8 bytes");
  ShuffleArguments arguments{&value, sizeof(T), mask};
  arrive(kShuffleXor, &arguments);
  return value;
}

struct MatricesArguments {
  uint32_t* out;
  const void* row;
};

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  MatricesArguments arguments{out, row};
  arrive(kLoadMatrices, &arguments);
}

inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  MatricesArguments arguments{out, row};
  arrive(kLoadMatricesTransposed, &arguments);
}

// c += a b; the fragments' layout is in csrc/cuda/ptx/mma.h.
struct MmaArguments {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaArguments arguments{c, a, {b0, b1}};
  arrive(kMmaBf16, &arguments);
}

inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaArguments arguments{c, a, {b0, b1}};
  arrive(kMmaF16, &arguments);
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaArguments arguments{c, a, {b0, b1}};
  arrive(kMmaTf32, &arguments);
}

struct MmaF64Arguments {
  double* c;
  double a, b;
};

inline void mma_f64(double (&c)[2], double a, double b) {
  MmaF64Arguments arguments{c, a, b};
  arrive(kMmaF64, &arguments);
}

}  // namespace pyguide::cuda::emulator
