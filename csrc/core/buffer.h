// Workspace: aligned, uninitialised, freed on every path.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace pyguide {

// Throws std::bad_alloc, which the binding turns into MemoryError.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(bytes(count), std::align_val_t(kAlignment)))) {}

  T* get() const { return data_.get(); }

 private:
  static constexpr size_t kAlignment = 64;

  static size_t bytes(int64_t count) {
    if (count < 0 || count > PTRDIFF_MAX / int64_t(sizeof(T))) throw std::bad_array_new_length();
    return size_t(count) * sizeof(T);
  }

  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace pyguide
