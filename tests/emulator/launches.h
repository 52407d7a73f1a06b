// Launching a kernel that must succeed, or must fail.
#pragma once

#include <string>

#include "check.h"
#include "control.h"
#include "cuda/launch.h"

template <class Kernel>
const char* failure_of(const typename Kernel::Params& params, int64_t blocks) {
  pyguide::cuda::prepare<Kernel>();
  return pyguide::cuda::launch<Kernel>(blocks, params, nullptr);
}

template <class Kernel>
void succeed(const typename Kernel::Params& params, int64_t blocks = 1) {
  const char* failure = failure_of<Kernel>(params, blocks);
  CHECK(!failure, failure);
}

template <class Kernel>
void fail_with(const std::string& words, const typename Kernel::Params& params,
               int64_t blocks = 1) {
  const char* failure = failure_of<Kernel>(params, blocks);
  CHECK(failure, "expected: " << words);
  CHECK(std::string(failure).find(words) != std::string::npos, failure << "\nexpected: " << words);
}

// In how many of a number of random orders the kernel does what `is_right` asks.
template <class Kernel, class Condition>
int right_runs(int seeds, const typename Kernel::Params& params, const Condition& is_right) {
  int right = 0;
  for (int seed = 0; seed < seeds; ++seed) {
    pyguide_emulator_seed(seed);
    succeed<Kernel>(params);
    right += is_right();
  }
  return right;
}
