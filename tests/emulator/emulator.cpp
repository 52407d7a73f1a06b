#include "emulator.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "block.h"
#include "control.h"

namespace pyguide::cuda::emulator {

namespace {

std::mutex one_launch_at_a_time;

std::string readable(const char* type_name) {
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(type_name, nullptr, nullptr, nullptr), std::free);
  return name ? name.get() : type_name;
}

// Fisher-Yates, because std::shuffle differs among standard libraries.
std::vector<int64_t> shuffled(int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  return order;
}

std::string failure_of(const Launch& launch) {
  if (!launch.prepared) return "the kernel was not prepared: a GPU may lack its shared memory";
  if (launch.blocks < 1 || launch.blocks > INT32_MAX) {
    return "a grid has 1 to 2^31 - 1 blocks, not " + std::to_string(launch.blocks);
  }
  for (const int64_t index : shuffled(launch.blocks)) {
    const std::string failure = block.run(launch, index);
    if (!failure.empty()) return failure;
  }
  return "";
}

}  // namespace

const char* run(const Launch& launch) {
  static thread_local std::string message;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  note_launch();
  const std::string failure = failure_of(launch);
  if (failure.empty()) return nullptr;
  message = readable(launch.kernel) + ", " + failure;
  return message.c_str();
}

void block_barrier(const char* site) {
  if (!leaves_out(site)) block.barrier(site);
}

void arrive(const Collective& operation, void* arguments) { block.arrive(operation, arguments); }

}  // namespace pyguide::cuda::emulator
