// Memory that a thread's earlier calls used, kept for its next ones.
#pragma once

#include <cstddef>

namespace pyguide {

constexpr size_t kBlockAlignment = 64;

struct MemoryBlock {
  void* data;
  size_t bytes;
};

// Uninitialised memory of at least `bytes` bytes; throws std::bad_alloc. Returning memory to the
// system and getting it back costs a page fault for every 4 KiB that is touched, which took two
// threads longer than the whole Gram matrix of 64 samples. So each calling thread keeps up to
// 64 MiB of what it released.
MemoryBlock acquire_block(size_t bytes);

// Takes back what acquire_block gave, on the same thread.
void release_block(const MemoryBlock& block) noexcept;

}  // namespace pyguide
