#include "core/checks.h"

#include <algorithm>
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

void check_matrix(const MatrixView& x, int64_t n, const char* name) {
  check_array(x.data, name, size_of(x.dtype));
  require(x.rows == n, "a layer's number of samples differs from n");
  require(x.rows >= 1, "n must be positive");
  require(x.cols >= 1, "a layer has no features");
  require(x.row_stride >= 0 && x.col_stride >= 0, "strides must not be negative");
  int64_t last_row = 0, last_col = 0, last = 0;
  const bool overflows = __builtin_mul_overflow(x.rows - 1, x.row_stride, &last_row) ||
                         __builtin_mul_overflow(x.cols - 1, x.col_stride, &last_col) ||
                         __builtin_add_overflow(last_row, last_col, &last) ||
                         __builtin_add_overflow(last, int64_t(1), &last);
  require(!overflows && fits(x.data, last, size_of(x.dtype)),
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

void check_layer(const MatrixView& x, int64_t n) { check_matrix(x, n, "a layer"); }

void check_output(const MatrixView& out, int64_t n) {
  check_matrix(out, n, "an output");
  struct Axis {
    int64_t stride, last;
  };
  Axis inner{out.row_stride, out.rows - 1}, outer{out.col_stride, out.cols - 1};
  if (inner.stride > outer.stride) std::swap(inner, outer);
  const bool distinct = (inner.last == 0 || inner.stride > 0) &&
                        (outer.last == 0 || outer.stride > inner.last * inner.stride);
  require(distinct, "elements of an output overlap");
}

void check_stack(const void* data, const char* name, DType dtype, int64_t layers, int64_t n) {
  require(dtype == DType::kFloat64 || dtype == DType::kFloat32,
          "a Gram stack is float32 or float64");
  check_array(data, name, size_of(dtype));
  require(layers >= 1, "a stack needs at least one layer");
  require(n >= 1, "n must be positive");
  int64_t matrix = 0, count = 0;
  const bool overflows = __builtin_mul_overflow(n, n, &matrix) ||
                         __builtin_mul_overflow(matrix, layers, &count);
  require(!overflows && fits(data, count, size_of(dtype)),
          "a stack's layers and n reach beyond the address space");
}

void check_indices(const std::vector<int64_t>& indices, int64_t count, const char* what) {
  for (int64_t index : indices) require(index >= 0 && index < count, what);
}

}  // namespace pyguide
