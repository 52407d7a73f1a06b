#include "workspace.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<unsigned char> fill_byte{0xff};
thread_local int passes_left = -1;

void count_allocation() {
  if (passes_left >= 0 && passes_left-- == 0) throw std::bad_alloc();
}

}  // namespace

void workspace::fill_with(unsigned char byte) { fill_byte = byte; }
void workspace::fail_at(int index) { passes_left = index; }

void* operator new(size_t size) {
  count_allocation();
  if (void* data = std::malloc(size ? size : 1)) return data;
  throw std::bad_alloc();
}

// posix_memalign gives exactly `size` bytes, so AddressSanitizer sees the first byte beyond.
void* operator new(size_t size, std::align_val_t alignment) {
  count_allocation();
  void* data = nullptr;
  if (posix_memalign(&data, size_t(alignment), size ? size : 1) != 0) throw std::bad_alloc();
  return std::memset(data, fill_byte, size);
}

void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
