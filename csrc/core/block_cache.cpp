#include "core/block_cache.h"

#include <new>
#include <utility>

namespace pyguide {
namespace {

constexpr size_t kSmallest = 4096;
constexpr int kSizes = 12;  // 4 KiB to 8 MiB in powers of two; larger blocks are not kept
constexpr size_t kMostKept = size_t(64) << 20;

void* allocate(size_t bytes) { return ::operator new(bytes, std::align_val_t(kBlockAlignment)); }
void deallocate(void* block) noexcept {
  ::operator delete(block, std::align_val_t(kBlockAlignment));
}

#if defined(__SANITIZE_ADDRESS__)
#define PYGUIDE_KEEPS_BLOCKS 0
#elif defined(__has_feature)
#define PYGUIDE_KEEPS_BLOCKS !__has_feature(address_sanitizer)
#else
#define PYGUIDE_KEEPS_BLOCKS 1
#endif

#if PYGUIDE_KEEPS_BLOCKS

// The index of the smallest size that holds `bytes`, or kSizes.
int size_index(size_t bytes) {
  int index = 0;
  while (index < kSizes && (kSmallest << index) < bytes) ++index;
  return index;
}

// A free block holds the pointer to the next one of its size.
struct FreeBlock {
  FreeBlock* next;
};

class Cache {
 public:
  ~Cache() {
    for (FreeBlock*& block : free_) {
      while (block != nullptr) deallocate(std::exchange(block, block->next));
    }
  }

  MemoryBlock acquire(size_t bytes) {
    const int fitting = size_index(bytes);
    // A larger block whose pages are there already is better than a fitting one without.
    for (int index = fitting; index < kSizes && index <= fitting + 2; ++index) {
      if (free_[index] == nullptr) continue;
      FreeBlock* block = free_[index];
      free_[index] = block->next;
      kept_ -= kSmallest << index;
      return {block, kSmallest << index};
    }
    if (fitting < kSizes) bytes = kSmallest << fitting;
    return {allocate(bytes), bytes};
  }

  void release(const MemoryBlock& block) noexcept {
    if (size_index(block.bytes) == kSizes || kept_ + block.bytes > kMostKept) {
      return deallocate(block.data);
    }
    FreeBlock*& first = free_[size_index(block.bytes)];
    first = new (block.data) FreeBlock{first};
    kept_ += block.bytes;
  }

 private:
  FreeBlock* free_[kSizes] = {};
  size_t kept_ = 0;
};

thread_local Cache cache;

#endif

}  // namespace

// AddressSanitizer sees the end of a block only if it has the size that was asked for.
#if PYGUIDE_KEEPS_BLOCKS
MemoryBlock acquire_block(size_t bytes) { return cache.acquire(bytes); }
void release_block(const MemoryBlock& block) noexcept { cache.release(block); }
#else
MemoryBlock acquire_block(size_t bytes) { return {allocate(bytes), bytes}; }
void release_block(const MemoryBlock& block) noexcept { deallocate(block.data); }
#endif

}  // namespace pyguide
