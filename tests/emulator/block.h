// A block while it runs: its threads, its shared memory, and who waits for whom.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace pyguide::cuda::emulator {

// A copy of copy_async() that has not landed.
struct PendingCopy {
  void* shared;
  const void* global;
  int bytes;
  int valid;
};

// One thread's copies, oldest first, in the groups that commit_copies() closed and an open one.
struct CopyQueue {
  std::vector<PendingCopy> copies;
  std::vector<size_t> group_sizes;
  size_t committed = 0;  // copies in closed groups
};

struct Thread {
  Fiber fiber;
  CopyQueue queue;
};

struct Warp {
  int ready[kWarpLanes];  // lanes that may run
  int ready_count = 0;
  int listed_at = -1;  // place in the block's list of warps that have ready lanes
  const Collective* operation = nullptr;
  void* arguments[kWarpLanes];
  int arrived = 0;
};

class Block {
 public:
  // Runs one block of the launch. Returns what went wrong, or an empty string.
  std::string run(const Launch& launch, int64_t index);

  // For the running thread:
  Thread& thread() { return threads_[position.thread]; }
  void barrier(const char* site);
  void arrive(const Collective& operation, void* arguments);

  // Throws what run_thread() catches and stops the block for.
  [[noreturn]] void fail(const std::string& what) const;

  bool is_shared(const void* p, int64_t bytes) const;

 private:
  struct Deallocate {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(128)); }
  };

  static void run_thread();
  void finish_thread();
  void prepare(const Launch& launch);
  void make_ready(int warp, int except = -1);
  void make_all_ready();
  void choose_warp();
  int next();
  void suspend();
  std::string deadlock() const;

  const Launch* launch_ = nullptr;
  std::unique_ptr<void, Deallocate> shared_;
  FiberStacks stacks_;
  Fiber launcher_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> ready_warps_;
  int warp_ = 0;                // whose lanes run now
  uint64_t patience_mask_ = 0;  // how long a warp keeps its turn
  const char* barrier_site_ = nullptr;
  int at_barrier_ = 0;
  int finished_ = 0;
  std::string failure_;
};

extern Block block;

}  // namespace pyguide::cuda::emulator
