// The order in which blocks and threads run, shared memory at the start, and asynchronous copies.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/copy.h"
#include "cuda/ptx/warp.h"
#include "launches.h"

using namespace pyguide::cuda;

namespace {

// Every thread notes when it came by, twice.
struct Journal {
  struct Params {
    std::vector<int64_t>* visits;
  };
  struct Shared {};
  static constexpr int kThreads = 96, kBlocksPerSm = 1;
  static void run(const Params& params, Shared&) {
    params.visits->push_back(block_index() * kThreads + thread_index());
    ptx::block_barrier("noted");
    params.visits->push_back(block_index() * kThreads + thread_index());
  }
};

std::vector<int64_t> visits_of(uint64_t seed) {
  std::vector<int64_t> visits;
  pyguide_emulator_seed(seed);
  succeed<Journal>({&visits}, 5);
  return visits;
}

// The values of shared memory that nobody wrote.
struct Unwritten {
  struct Params {
    bool* all_nan;
  };
  struct Shared {
    double f64[3];
    float f32[3];
    uint16_t f16[3];
    uint16_t bf16[3];
  };
  static constexpr int kThreads = 32, kBlocksPerSm = 1;
  static void run(const Params& params, Shared& shared) {
    for (int i = 0; i < 3; ++i) {
      params.all_nan[block_index()] &=
          std::isnan(shared.f64[i]) && std::isnan(shared.f32[i]) &&
          std::isnan(ptx::float_of_f16(shared.f16[i])) &&
          std::isnan(ptx::float_of_bf16(shared.bf16[i]));
    }
    ptx::block_barrier("read");
    std::memset(&shared, 0, sizeof shared);
  }
};

// Two groups of copies, with what the thread sees of them at each step.
struct Copies {
  struct Seen {
    float at_start[4], after_issue[4], after_first_wait[4], at_end[4];
  };
  struct Params {
    const float* in;
    Seen* out;
  };
  struct Shared {
    alignas(16) float x[32][4];
  };
  static constexpr int kThreads = 32, kBlocksPerSm = 1;
  static void run(const Params& params, Shared& shared) {
    float(&x)[4] = shared.x[thread_index()];
    Seen& seen = params.out[thread_index()];
    for (int i = 0; i < 4; ++i) x[i] = -1;
    std::memcpy(seen.at_start, x, sizeof x);
    ptx::copy_async<8>(x, params.in, 8);
    ptx::commit_copies();
    ptx::copy_async<4>(x + 2, params.in + 2, 3);
    ptx::copy_async<4>(x + 3, params.in + 3, 0);
    ptx::commit_copies();
    std::memcpy(seen.after_issue, x, sizeof x);
    ptx::wait_for_copies<1>("first");
    std::memcpy(seen.after_first_wait, x, sizeof x);
    ptx::wait_for_copies<0>("second");
    std::memcpy(seen.at_end, x, sizeof x);
  }
};

constexpr float kIn[] = {1, 2, 3, 4};

bool all_nan(const float* x, int count) {
  return std::all_of(x, x + count, [](float v) { return std::isnan(v); });
}

std::string sites() {
  std::string names(1000, 0);
  names.resize(pyguide_emulator_sites(names.data(), int64_t(names.size())) - 1);
  return names;
}

}  // namespace

TEST(every_thread_runs_once_between_barriers) {
  const std::vector<int64_t> visits = visits_of(1);
  std::vector<int64_t> blocks;
  for (size_t start = 0; start < visits.size(); start += Journal::kThreads) {
    std::vector<int64_t> phase(visits.begin() + start, visits.begin() + start + Journal::kThreads);
    std::sort(phase.begin(), phase.end());
    std::vector<int64_t> expected(Journal::kThreads);
    std::iota(expected.begin(), expected.end(), phase[0] / Journal::kThreads * Journal::kThreads);
    CHECK(phase == expected, "phase " << start / Journal::kThreads);
    blocks.push_back(phase[0] / Journal::kThreads);
  }
  std::sort(blocks.begin(), blocks.end());
  CHECK(blocks == (std::vector<int64_t>{0, 0, 1, 1, 2, 2, 3, 3, 4, 4}), "not every block ran");
}

TEST(order_depends_on_the_seed_only) {
  CHECK(visits_of(1) == visits_of(1), "the same seed gave two orders");
  CHECK(visits_of(1) != visits_of(2), "two seeds gave the same order");
}

TEST(shared_memory_starts_as_nan_in_every_block) {
  bool nan[4] = {true, true, true, true};
  succeed<Unwritten>({nan}, 4);
  for (const bool is_nan : nan) CHECK(is_nan, "a block found a number");
}

TEST(copies_land_at_the_wait_that_covers_them) {
  Copies::Seen out[32];
  succeed<Copies>({kIn, out});
  float cut = 3;  // without its last byte
  std::memset(reinterpret_cast<char*>(&cut) + 3, 0, 1);
  for (const Copies::Seen& seen : out) {
    CHECK(seen.at_start[0] == -1, "the thread's own store is not seen");
    CHECK(all_nan(seen.after_issue, 4), "a copy landed before a wait, or left the old value");
    CHECK(seen.after_first_wait[0] == 1 && seen.after_first_wait[1] == 2, "the first group");
    CHECK(all_nan(seen.after_first_wait + 2, 2), "the second group landed too early");
    CHECK(seen.at_end[1] == 2 && seen.at_end[2] == cut && seen.at_end[3] == 0, "the second group");
  }
}

TEST(deleted_wait_lands_nothing) {
  Copies::Seen out[32];
  pyguide_emulator_delete("first");
  succeed<Copies>({kIn, out});
  pyguide_emulator_delete("");
  for (const Copies::Seen& seen : out) {
    CHECK(all_nan(seen.after_first_wait, 4), "a copy landed without its wait");
    CHECK(seen.at_end[0] == 1 && seen.at_end[1] == 2, "the next wait covers the older group too");
  }
}

TEST(sites_and_launches_since_the_last_call) {
  Copies::Seen out[32];
  sites();
  pyguide_emulator_launches();
  succeed<Copies>({kIn, out});
  visits_of(1);
  CHECK(sites() == "first\nnoted\nsecond\n", "sites of the two kernels");
  CHECK(pyguide_emulator_launches() == 2, "launches");
  CHECK(sites().empty() && pyguide_emulator_launches() == 0, "asked twice");
  visits_of(1);
  char cut[4];
  CHECK(pyguide_emulator_sites(cut, 4) == 7, "bytes of a string that was cut off");
  CHECK(std::string(cut) == "not", "a string that was cut off: " << cut);
}
