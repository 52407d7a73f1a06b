// Several threads that call the library at once.
#include <thread>

#include "check.h"
#include "training_step.h"

TEST(callers_do_not_disturb_each_other) {
  const auto& kernels = pyguide::cpu::kernel_set("");
  constexpr int kRounds = 5;
  TrainingStep small(60), large(300), expected_small(60), expected_large(300);
  expected_small.run(kernels, 2);
  expected_large.run(kernels, 3);
  int wrong[2] = {};
  const auto call = [&](TrainingStep& step, const TrainingStep& expected, int threads, int& count) {
    for (int round = 0; round < kRounds; ++round) {
      step.run(kernels, threads);
      count += !step.same_bytes(expected);
    }
  };
  std::thread first([&] { call(small, expected_small, 2, wrong[0]); });
  std::thread second([&] { call(large, expected_large, 3, wrong[1]); });
  first.join();
  second.join();
  CHECK(wrong[0] == 0 && wrong[1] == 0, wrong[0] << " and " << wrong[1] << " wrong results");
}
