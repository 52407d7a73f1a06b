#include <cstdint>

#include "check.h"
#include "core/block_cache.h"

using pyguide::acquire_block;
using pyguide::MemoryBlock;
using pyguide::release_block;

TEST(block_cache_gives_aligned_blocks_of_any_size) {
  for (size_t bytes : {size_t(0), size_t(1), size_t(4096), size_t(4097), size_t(9) << 20}) {
    const MemoryBlock block = acquire_block(bytes);
    CHECK(block.bytes >= bytes, bytes << " bytes wanted");
    CHECK(reinterpret_cast<uintptr_t>(block.data) % pyguide::kBlockAlignment == 0, bytes);
    release_block(block);
  }
}

TEST(block_cache_reuses_what_fits) {
  const MemoryBlock first = acquire_block(100000);
  release_block(first);
  // AddressSanitizer needs blocks of the size that was asked for: its build keeps none.
  if (first.bytes == 100000) return;
  const MemoryBlock second = acquire_block(100000);
  CHECK(second.data == first.data, "a released block was not used again");
  const MemoryBlock third = acquire_block(100000);
  CHECK(third.data != second.data, "a block was given out twice");
  release_block(second);
  release_block(third);
}
