// Kernels with a mistake on purpose: each must show, as a fault or as a wrong result.
#include <cmath>
#include <cstring>

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/copy.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/warp.h"
#include "launches.h"

using namespace pyguide::cuda;

namespace {

constexpr int kSeeds = 20;

// Each thread passes a number to one of another warp through shared memory, round after round.
struct Rotate {
  struct Params {
    float* out;
  };
  struct Shared {
    float x[128];
  };
  static constexpr int kThreads = 128, kBlocksPerSm = 1, kRounds = 4;
  static void run(const Params& params, Shared& shared) {
    float value = float(thread_index());
    for (int round = 0; round < kRounds; ++round) {
      shared.x[thread_index()] = value;
      ptx::block_barrier("written");
      value = shared.x[(thread_index() + 33) % kThreads];
      ptx::block_barrier("read");
    }
    params.out[thread_index()] = value;
  }
};

int right_rotations(const char* deleted) {
  float out[Rotate::kThreads];
  pyguide_emulator_delete(deleted);
  const int right = right_runs<Rotate>(kSeeds, {out}, [&] {
    for (int i = 0; i < Rotate::kThreads; ++i) {
      if (out[i] != float((i + 33 * Rotate::kRounds) % Rotate::kThreads)) return false;
    }
    return true;
  });
  pyguide_emulator_delete("");
  return right;
}

// A pipeline of two stages: every warp sums what all threads copied. Between the sums the lanes
// exchange values, as a tile's product does, so that warps can drift apart.
struct Pipeline {
  struct Params {
    const float* in;  // kSlices of 64
    float* out;
  };
  struct Shared {
    alignas(16) float stage[2][64];
  };
  static constexpr int kThreads = 64, kBlocksPerSm = 1, kSlices = 6;

  static void issue(const Params& params, Shared& shared, int slice) {
    if (slice < kSlices) {
      ptx::copy_async<4>(&shared.stage[slice % 2][thread_index()],
                         params.in + slice * 64 + thread_index(), 4);
    }
    ptx::commit_copies();
  }

  static void run(const Params& params, Shared& shared) {
    float sum = 0;
    issue(params, shared, 0);
    for (int slice = 0; slice < kSlices; ++slice) {
      issue(params, shared, slice + 1);
      ptx::wait_for_copies<1>("landed");
      ptx::block_barrier("landed for all");
      for (int i = 0; i < 64; i += 32) {
        sum += float(ptx::warp_sum(shared.stage[slice % 2][i + lane_index()]));
      }
      ptx::block_barrier("summed");
    }
    params.out[thread_index()] = sum;
  }
};

int right_pipelines(const char* deleted) {
  float in[Pipeline::kSlices * 64], out[Pipeline::kThreads];
  float total = 0;
  for (int i = 0; i < Pipeline::kSlices * 64; ++i) total += in[i] = float(i % 17);
  pyguide_emulator_delete(deleted);
  const int right = right_runs<Pipeline>(kSeeds, {in, out}, [&] {
    for (const float x : out) {
      if (x != total) return false;
    }
    return true;
  });
  pyguide_emulator_delete("");
  return right;
}

struct OneWarp {
  struct Params {
    const char* global;
  };
  struct Shared {
    alignas(16) char bytes[64];
  };
  static constexpr int kThreads = 32, kBlocksPerSm = 1;
};

struct TwoWarps : OneWarp {
  static constexpr int kThreads = 64;
};

struct TwoBarriers : TwoWarps {
  static void run(const Params&, Shared&) {
    ptx::block_barrier(warp_index() == 0 ? "one" : "other");
  }
};

struct BarrierAfterExit : TwoWarps {
  static void run(const Params&, Shared&) {
    if (thread_index() == 40) return;
    ptx::block_barrier("all but one");
  }
};

struct PartialWarp : OneWarp {
  static void run(const Params&, Shared&) {
    if (lane_index() < 31) ptx::warp_sum(1);
  }
};

struct TwoOperations : OneWarp {
  static void run(const Params&, Shared&) {
    float c[4] = {};
    const uint32_t a[4] = {};
    if (lane_index() == 0) {
      ptx::mma_bf16(c, a, 0, 0);
    } else {
      ptx::mma_f16(c, a, 0, 0);
    }
  }
};

struct BarrierInPartOfAWarp : OneWarp {
  static void run(const Params&, Shared&) {
    if (lane_index() < 16) {
      ptx::block_barrier("half");
    } else {
      ptx::shuffle_xor(1, 1);
    }
  }
};

// The mask of a shuffle that leaves the warp.
struct WideShuffle : OneWarp {
  static void run(const Params&, Shared&) { ptx::shuffle_xor(1, 32); }
};

template <int kSharedOffset, int kGlobalOffset, int kBytes, int kValid>
struct Copy : OneWarp {
  static void run(const Params& params, Shared& shared) {
    if (thread_index() > 0) return;
    ptx::copy_async<kBytes>(shared.bytes + kSharedOffset, params.global + kGlobalOffset, kValid);
    ptx::commit_copies();
    ptx::wait_for_copies<0>("copied");
  }
};

struct UnfinishedCopy : OneWarp {
  static void run(const Params& params, Shared& shared) {
    if (thread_index() > 0) return;
    ptx::copy_async<4>(shared.bytes, params.global, 4);
    ptx::commit_copies();
    ptx::wait_for_copies<1>("too few");
  }
};

struct UncommittedCopy : OneWarp {
  static void run(const Params& params, Shared& shared) {
    if (thread_index() > 0) return;
    ptx::copy_async<4>(shared.bytes, params.global, 4);
    ptx::wait_for_copies<0>("nothing committed");
  }
};

template <int kOffset>
struct LoadRow : OneWarp {
  static void run(const Params&, Shared& shared) {
    uint32_t out[4];
    ptx::load_matrices(out, shared.bytes + (lane_index() == 9 ? kOffset : 0));
  }
};

struct Unprepared : OneWarp {
  static void run(const Params&, Shared&) {}
};

struct Overrun : OneWarp {
  static void run(const Params&, Shared& shared) {
    volatile char* past = shared.bytes + sizeof(Shared) + thread_index();
    *past = 1;
  }
};

struct Recursion : OneWarp {
  static int64_t depth(int64_t n) {
    volatile char frame[4096];
    frame[n % 4096] = 1;
    return n == 0 ? 0 : depth(n - 1) + frame[n % 4096];
  }
  static void run(const Params& params, Shared& shared) {
    shared.bytes[0] = char(depth(params.global[0]));
  }
};

alignas(16) constexpr char kGlobal[64] = {100};

}  // namespace

TEST(barriers_that_are_needed) {
  CHECK(right_rotations("") == kSeeds, "the whole kernel is right in every order");
  CHECK(right_rotations("written") == 0, "without the barrier after the write");
  CHECK(right_rotations("read") == 0, "without the barrier before the next write");
}

TEST(pipeline_that_is_needed) {
  CHECK(right_pipelines("") == kSeeds, "the whole kernel is right in every order");
  CHECK(right_pipelines("landed for all") < kSeeds / 2, "reads what others have not waited for");
  CHECK(right_pipelines("summed") < kSeeds / 2, "overwrites a stage that others still read");
}

TEST(deleted_wait_shows) {
  float in[Pipeline::kSlices * 64] = {}, out[Pipeline::kThreads] = {};
  pyguide_emulator_delete("landed");
  fail_with<Pipeline>("asynchronous copies are still under way at the end", {in, out});
  pyguide_emulator_delete("");
  CHECK(right_pipelines("") == kSeeds, "a failed launch spoils the next");
}

TEST(divergent_barriers) {
  fail_with<TwoBarriers>("divergent barrier", {kGlobal});
  fail_with<BarrierAfterExit>("1 have finished, 63 wait at 'all but one'", {kGlobal});
  fail_with<BarrierInPartOfAWarp>("16 wait at 'half', 16 wait at 'shuffle_xor'", {kGlobal});
}

TEST(partial_warps) {
  fail_with<PartialWarp>("1 have finished, 31 wait at 'shuffle_xor'", {kGlobal});
  fail_with<TwoOperations>("divergent warp", {kGlobal});
  fail_with<WideShuffle>("mask 32 is not a lane's", {kGlobal});
}

TEST(wrong_copies) {
  succeed<Copy<16, 16, 16, 16>>({kGlobal});
  succeed<Copy<4, 60, 4, 0>>({kGlobal});
  fail_with<Copy<8, 16, 16, 16>>("the shared address is not aligned", {kGlobal});
  fail_with<Copy<16, 8, 16, 16>>("the global address is not aligned", {kGlobal});
  fail_with<Copy<8, 4, 8, 8>>("the global address is not aligned", {kGlobal});
  fail_with<Copy<2, 4, 4, 4>>("the shared address is not aligned", {kGlobal});
  fail_with<Copy<64, 0, 16, 16>>("outside shared memory", {kGlobal});
  fail_with<Copy<-16, 0, 16, 16>>("outside shared memory", {kGlobal});
  fail_with<Copy<0, 0, 8, 9>>("valid bytes", {kGlobal});
  fail_with<Copy<0, 0, 8, -1>>("valid bytes", {kGlobal});
  fail_with<UnfinishedCopy>("still under way", {kGlobal});
  fail_with<UncommittedCopy>("still under way", {kGlobal});
}

TEST(wrong_rows_of_load_matrices) {
  succeed<LoadRow<48>>({kGlobal});
  fail_with<LoadRow<8>>("lane 9's row is not aligned to 16 bytes", {kGlobal});
  fail_with<LoadRow<64>>("lane 9's row is outside shared memory", {kGlobal});
}

TEST(wrong_grids) {
  fail_with<LoadRow<48>>("a grid has 1 to 2^31 - 1 blocks, not 0", {kGlobal}, 0);
  fail_with<LoadRow<48>>("blocks", {kGlobal}, int64_t(1) << 31);
}

TEST(failures_name_the_place) {
  fail_with<TwoOperations>("TwoOperations, block 0, thread ", {kGlobal});
}

TEST(kernels_are_prepared_before_they_start) {
  const char* failure = launch<Unprepared>(1, {kGlobal}, nullptr);
  CHECK(std::strstr(failure, "Unprepared, the kernel was not prepared"), failure);
}

// For AddressSanitizer, and for the page below a fiber's stack.
TEST(planted_shared_overrun) { succeed<Overrun>({kGlobal}); }
TEST(planted_stack_overflow) { succeed<Recursion>({kGlobal}); }
