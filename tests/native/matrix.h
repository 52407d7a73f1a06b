// A strided matrix of any dtype that ends where its last element ends, and plain loops on it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/matrix_view.h"

enum class Layout {
  kContiguous,
  kTransposed,
  kGaps,            // every second column, rows far apart
  kTransposedGaps,  // the same with the axes exchanged
  kEqualRows,       // stride 0 over the samples: inputs only
  kEqualColumns,    // stride 0 over the features: inputs only
  kOverlapping,     // sliding windows: inputs only
};

using Values = std::vector<double>;

class Matrix {
 public:
  Matrix(pyguide::DType dtype, int64_t rows, int64_t cols, Layout layout = Layout::kContiguous);

  const pyguide::MatrixView& view() const { return view_; }
  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  const char* layout() const;

  double get(int64_t row, int64_t col) const;
  void set(int64_t row, int64_t col, double value);  // rounded to the dtype

  // Standard normal values, with a different offset for each column.
  Matrix& randomize(uint64_t seed, double offset = 1);

  Values values() const;  // row-major

  // Whether the bytes between the elements are as they were allocated.
  bool gaps_untouched() const;
  bool same_bytes(const Matrix& other) const;

 private:
  char* at(int64_t row, int64_t col) const;

  static constexpr unsigned char kGap = 0xa5;
  Layout layout_;
  pyguide::MatrixView view_;
  int64_t bytes_;
  std::unique_ptr<char[]> data_;
};

// A contiguous stack of n x n matrices; float32 or float64.
class Stack {
 public:
  Stack(pyguide::DType dtype, int64_t layers, int64_t n)
      : matrix_(dtype, layers * n, n), n_(n) {}

  void* data() const { return matrix_.view().data; }
  pyguide::DType dtype() const { return matrix_.view().dtype; }
  int64_t layers() const { return matrix_.rows() / n_; }
  int64_t n() const { return n_; }
  double get(int64_t layer, int64_t i, int64_t j) const { return matrix_.get(layer * n_ + i, j); }
  Values values(int64_t layer) const;
  void set(int64_t layer, int64_t i, int64_t j, double value) {
    matrix_.set(layer * n_ + i, j, value);
  }
  bool same_bytes(const Stack& other) const { return matrix_.same_bytes(other.matrix_); }

 private:
  Matrix matrix_;
  int64_t n_;
};

// The largest relative error of rounding one result.
inline double rounding_of(pyguide::DType dtype) {
  switch (dtype) {
    case pyguide::DType::kFloat64:
      return 0x1p-53;
    case pyguide::DType::kFloat32:
      return 0x1p-24;
    case pyguide::DType::kBFloat16:
      return 0x1p-8;
    default:
      return 0x1p-11;
  }
}

const char* name_of(pyguide::DType dtype);

constexpr pyguide::DType kDTypes[] = {pyguide::DType::kFloat64, pyguide::DType::kFloat32,
                                      pyguide::DType::kBFloat16, pyguide::DType::kFloat16};
