#include "core/block_cache.h"

#include <new>

namespace pyguide {
namespace {

constexpr size_t kSmallest = 4096;
constexpr int kSizes = 12;  // 4 KiB to 8 MiB in powers of two; larger blocks are not kept
constexpr size_t kMostKept = size_t(64) << 20;

void* allocate(size_t bytes) { return ::operator new(bytes, std::align_val_t(kBlockAlignment)); }
void deallocate(void* block) noexcept {
  ::operator delete(block, std::align_val_t(kBlockAlignment));
}

#ifndef __SANITIZE_ADDRESS__

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
    for (FreeBlock* block : free_) {
      while (block != nullptr) {
        FreeBlock* next = block->next;
        deallocate(block);
        block = next;
      }
    }
  }

  void* acquire(size_t bytes) {
    const int index = size_index(bytes);
    if (index == kSizes) return allocate(bytes);
    if (free_[index] == nullptr) return allocate(kSmallest << index);
    FreeBlock* block = free_[index];
    free_[index] = block->next;
    kept_ -= kSmallest << index;
    return block;
  }

  void release(void* block, size_t bytes) noexcept {
    const int index = size_index(bytes);
    if (index == kSizes || kept_ + (kSmallest << index) > kMostKept) return deallocate(block);
    free_[index] = new (block) FreeBlock{free_[index]};
    kept_ += kSmallest << index;
  }

 private:
  FreeBlock* free_[kSizes] = {};
  size_t kept_ = 0;
};

thread_local Cache cache;

#endif

}  // namespace

// AddressSanitizer sees the end of a block only if it has the size that was asked for.
#ifdef __SANITIZE_ADDRESS__
void* acquire_block(size_t bytes) { return allocate(bytes); }
void release_block(void* block, size_t) noexcept { deallocate(block); }
#else
void* acquire_block(size_t bytes) { return cache.acquire(bytes); }
void release_block(void* block, size_t bytes) noexcept { cache.release(block, bytes); }
#endif

}  // namespace pyguide
