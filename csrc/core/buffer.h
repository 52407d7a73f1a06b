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
  explicit Buffer(int64_t count) : bytes_(bytes(count)), data_(acquire_block(bytes_)) {}
  Buffer(Buffer&& other) noexcept
      : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    if (data_ != nullptr) release_block(data_, bytes_);
  }

  T* get() const { return static_cast<T*>(data_); }

 private:
  static size_t bytes(int64_t count) {
    if (count < 0 || count > PTRDIFF_MAX / int64_t(sizeof(T))) throw std::bad_array_new_length();
    return size_t(count) * sizeof(T);
  }

  size_t bytes_;
  void* data_;
};

}  // namespace pyguide
