// Workspace: aligned, uninitialised, released on every path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "core/block_cache.h"

namespace pyguide {

// Throws std::bad_alloc, which the binding turns into MemoryError. Lives and dies on one thread.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : block_(acquire_block(bytes(count))) {}
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, {nullptr, 0})) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    if (block_.data != nullptr) release_block(block_);
  }

  T* get() const { return static_cast<T*>(block_.data); }

  // The same memory for elements of another type.
  template <class U>
  U* as() const {
    return static_cast<U*>(block_.data);
  }

 private:
  static size_t bytes(int64_t count) {
    if (count < 0 || count > PTRDIFF_MAX / int64_t(sizeof(T))) throw std::bad_array_new_length();
    return size_t(count) * sizeof(T);
  }

  MemoryBlock block_;
};

}  // namespace pyguide
