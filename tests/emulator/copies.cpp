// cp.async: data lands as late as the program allows, and from the issue until then its place
// holds NaN, so that using it too early or overwriting what others still read shows.
#include <cstring>
#include <string>

#include "block.h"
#include "control.h"

namespace pyguide::cuda::emulator {

namespace {

bool is_aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

void land(const PendingCopy& copy) {
  std::memcpy(copy.shared, copy.global, copy.valid);
  std::memset(static_cast<char*>(copy.shared) + copy.valid, 0, copy.bytes - copy.valid);
}

}  // namespace

void copy_async(void* shared, const void* global, int bytes, int valid) {
  const auto require = [&](bool condition, const char* what) {
    if (!condition) block.fail("copy_async of " + std::to_string(bytes) + " bytes: " + what);
  };
  require(is_aligned(shared, bytes), "the shared address is not aligned to them");
  require(is_aligned(global, bytes), "the global address is not aligned to them");
  require(block.is_shared(shared, bytes), "the target is outside shared memory");
  require(valid >= 0 && valid <= bytes, "the valid bytes are negative or more than that");
  std::memset(shared, 0xff, bytes);
  block.thread().queue.copies.push_back({shared, global, bytes, valid});
}

void commit_copies() {
  CopyQueue& queue = block.thread().queue;
  queue.group_sizes.push_back(queue.copies.size() - queue.committed);
  queue.committed = queue.copies.size();
}

void wait_for_copies(int pending, const char* site) {
  if (leaves_out(site)) return;
  CopyQueue& queue = block.thread().queue;
  size_t landed = 0;
  auto group = queue.group_sizes.begin();
  for (; queue.group_sizes.end() - group > pending; ++group) {
    for (const size_t end = landed + *group; landed < end; ++landed) land(queue.copies[landed]);
  }
  queue.group_sizes.erase(queue.group_sizes.begin(), group);
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + landed);
  queue.committed -= landed;
}

}  // namespace pyguide::cuda::emulator
