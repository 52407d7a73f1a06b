#include <atomic>
#include <thread>

#include "check.h"
#include "core/parallel.h"
#include "workspace.h"

using pyguide::parallel;
using pyguide::parallel_for;
using pyguide::threads_for;

TEST(parallel_calls_each_index_once) {
  for (int threads : {0, 1, 2, 3, 7, 40}) {
    std::vector<int> calls(size_t(threads), 0);
    parallel(threads, [&](int t) { ++calls[size_t(t)]; });
    CHECK(calls == std::vector<int>(size_t(threads), 1), threads << " threads");
  }
}

TEST(parallel_for_covers_the_range_once) {
  for (int threads : {1, 2, 3, 7}) {
    for (int64_t count : {0, 1, 2, 5, 7, 1000}) {
      std::vector<int> calls(size_t(count), 0);
      parallel_for(threads, count, [&](int64_t i) { ++calls[size_t(i)]; });
      CHECK(calls == std::vector<int>(size_t(count), 1), threads << " threads, " << count);
    }
  }
}

TEST(one_thread_is_the_callers) {
  const auto caller = std::this_thread::get_id();
  std::thread::id runner;
  parallel(1, [&](int) { runner = std::this_thread::get_id(); });
  CHECK(runner == caller, "a plain call");
}

TEST(std_threads_run_side_by_side) {
  std::atomic<int> arrived{0};
  // Each waits for all the others: a loop that ran one after another would never end.
  pyguide::run_on_std_threads(4, [&](int) {
    ++arrived;
    while (arrived < 4) std::this_thread::yield();
  });
  CHECK(arrived == 4, "four threads");
}

TEST(refused_threads_are_made_up_for) {
  for (int refused = 1; refused < 5; ++refused) {
    std::vector<int> calls(8, 0);
    workspace::fail_at(refused);  // allocation 0 is the list of threads
    pyguide::run_on_std_threads(8, [&](int t) { ++calls[size_t(t)]; });
    workspace::fail_at(-1);
    CHECK(calls == std::vector<int>(8, 1), "allocation " << refused);
  }
}

TEST(threads_for_small_work) {
  CHECK(threads_for(0, 8) == 1, "no work");
  CHECK(threads_for(1e5, 8) == 1, "less than a thread's worth");
  CHECK(threads_for(3e5, 8) == 3, "two threads' worth beyond the first");
  CHECK(threads_for(1e18, 8) == 8, "more than enough");
}
