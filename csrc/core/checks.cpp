#include "core/checks.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace pyguide {
namespace {

// More threads than any machine has; a runtime that cannot start that many ends the process.
constexpr int kMaxThreads = 4096;

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("pyguide._native: " + what);
}

// Whether `count` elements from `data` on end within the address space. Counts of bytes then fit
// int64 too, and so does every smaller product.
bool fits(const void* data, int64_t count, int64_t size) {
  int64_t bytes = 0, end = 0;
  return !__builtin_mul_overflow(count, size, &bytes) &&
         !__builtin_add_overflow(int64_t(reinterpret_cast<uintptr_t>(data)), bytes, &end);
}

// The axes of a batch: how far its last element lies from its first, and how far apart two are.
struct Axis {
  int64_t size, stride;
};

std::array<Axis, 3> axes_of(const MatrixBatch& x) {
  return {{{x.first.rows, x.first.row_stride},
           {x.first.cols, x.first.col_stride},
           {x.count, x.stride}}};
}

void check_matrices(const MatrixBatch& x, int64_t n, const char* name) {
  const MatrixView& first = x.first;
  check_array(first.data, name, size_of(first.dtype));
  require(first.rows == n, "a layer's number of samples differs from n");
  require(first.rows >= 1, "n must be positive");
  require(first.cols >= 1, "a layer has no features");
  require(x.count >= 1, "a layer has no tokens");
  int64_t elements = 1;
  bool overflows = false;
  for (const Axis& axis : axes_of(x)) {
    require(axis.stride >= 0, "strides must not be negative");
    int64_t last = 0;
    overflows |= __builtin_mul_overflow(axis.size - 1, axis.stride, &last) ||
                 __builtin_add_overflow(elements, last, &elements);
  }
  require(!overflows && fits(first.data, elements, size_of(first.dtype)),
          "a layer's sizes and strides reach beyond the address space");
}

}  // namespace

void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

DType dtype_from(int64_t code) {
  require(code >= 0 && code <= 3, "dtype code must be 0..3");
  return static_cast<DType>(code);
}

Centering centering_from(int64_t code) {
  require(code >= 0 && code <= 2, "centering code must be 0, 1 or 2");
  return static_cast<Centering>(code);
}

void check_threads(int threads) {
  require(threads >= 1, "threads must be positive");
  require(threads <= kMaxThreads, "threads must be at most 4096");
}

void check_array(const void* data, const char* name, int64_t size) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (address == 0) fail(std::string(name) + " is a null pointer");
  if (address > uintptr_t(INTPTR_MAX)) fail(std::string(name) + " is not an address");
  if (address % uintptr_t(size) != 0) {
    fail(std::string(name) + " is not aligned to its elements' size: pass a copy (x.clone())");
  }
}

void check_layer(const MatrixBatch& x, int64_t n) { check_matrices(x, n, "a layer"); }

void check_output(const MatrixBatch& out, int64_t n) {
  check_matrices(out, n, "an output");
  std::array<Axis, 3> axes = axes_of(out);
  std::sort(axes.begin(), axes.end(),
            [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  int64_t reach = 0;  // of the axes before this one
  for (const Axis& axis : axes) {
    if (axis.size == 1) continue;
    require(axis.stride > reach, "elements of an output overlap");
    reach += (axis.size - 1) * axis.stride;
  }
}

void check_stack(const void* data, const char* name, DType dtype, int64_t layers, int64_t n,
                 int64_t row_stride) {
  require(dtype == DType::kFloat64 || dtype == DType::kFloat32,
          "a Gram stack is float32 or float64");
  check_array(data, name, size_of(dtype));
  require(layers >= 1, "a stack needs at least one layer");
  require(n >= 1, "n must be positive");
  require(row_stride >= n, "rows of a stack overlap");
  int64_t matrix = 0, count = 0;
  const bool overflows = __builtin_mul_overflow(n, row_stride, &matrix) ||
                         __builtin_mul_overflow(matrix, layers, &count);
  require(!overflows && fits(data, count, size_of(dtype)),
          "a stack's layers and n reach beyond the address space");
}

void check_indices(const std::vector<int64_t>& indices, int64_t count, const char* what) {
  for (int64_t index : indices) require(index >= 0 && index < count, what);
}

}  // namespace pyguide
