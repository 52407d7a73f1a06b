// Workspace: what it held before must not matter, and running out of it is an exception.
#include <new>

#include "check.h"
#include "training_step.h"
#include "workspace.h"

TEST(uninitialised_workspace_does_not_matter) {
  for (int64_t n : {5, 300, 530}) {
    for_each_configuration([&](const pyguide::cpu::KernelSet& kernels, int threads) {
      if (threads == 2 || threads == 7) return;
      TrainingStep zeros(n), nans(n);
      workspace::fill_with(0);
      zeros.run(kernels, threads);
      workspace::fill_with(0xff);
      nans.run(kernels, threads);
      CHECK(zeros.same_bytes(nans), "n " << n << ", threads " << threads << ", " << kernels.name);
    });
  }
}

TEST(every_failed_allocation_is_an_exception) {
  const auto& kernels = pyguide::cpu::kernel_set("");
  for (int64_t n : {20, 260}) {
    for (int threads : {1, 3}) {
      if (n == 260 && threads == 1) continue;  // the blocks of n > 256 matter, and take long
      TrainingStep step(n), undisturbed(n);
      undisturbed.run(kernels, threads);
      int failures = 0;
      for (bool done = false; !done; ++failures) {
        workspace::fail_at(failures);
        try {
          step.run(kernels, threads);
          done = true;
        } catch (const std::bad_alloc&) {
        }
        workspace::fail_at(-1);
      }
      CHECK(failures > 10, "only " << failures << " allocations");
      CHECK(step.same_bytes(undisturbed), "n " << n << ", threads " << threads);
    }
  }
}
