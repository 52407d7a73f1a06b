#include "matrix.h"

#include <cstring>
#include <random>

using pyguide::DType;

namespace {

struct Strides {
  int64_t row, col;
};

Strides strides_of(Layout layout, int64_t rows, int64_t cols) {
  switch (layout) {
    case Layout::kContiguous:
      return {cols, 1};
    case Layout::kTransposed:
      return {1, rows};
    case Layout::kGaps:
      return {2 * cols + 3, 2};
    case Layout::kTransposedGaps:
      return {3, 3 * rows + 1};
    case Layout::kEqualRows:
      return {0, 1};
    case Layout::kEqualColumns:
      return {1, 0};
    case Layout::kOverlapping:
      return {2, 1};
  }
  return {};
}

// Calls body with an element of the dtype.
template <class Body>
auto with_element(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(double());
    case DType::kFloat32:
      return body(float());
    case DType::kBFloat16:
      return body(pyguide::bfloat16());
    default:
      return body(pyguide::float16());
  }
}

}  // namespace

Matrix::Matrix(DType dtype, int64_t rows, int64_t cols, Layout layout) : layout_(layout) {
  const Strides strides = strides_of(layout, rows, cols);
  const int64_t count = (rows - 1) * strides.row + (cols - 1) * strides.col + 1;
  bytes_ = count * pyguide::size_of(dtype);
  data_.reset(new char[size_t(bytes_)]);
  std::memset(data_.get(), kGap, size_t(bytes_));
  view_ = {data_.get(), dtype, rows, cols, strides.row, strides.col};
}

char* Matrix::at(int64_t row, int64_t col) const {
  return data_.get() +
         (row * view_.row_stride + col * view_.col_stride) * pyguide::size_of(view_.dtype);
}

double Matrix::get(int64_t row, int64_t col) const {
  return with_element(view_.dtype, [&](auto element) {
    std::memcpy(&element, at(row, col), sizeof element);
    return double(pyguide::widen(element));
  });
}

void Matrix::set(int64_t row, int64_t col, double value) {
  with_element(view_.dtype, [&](auto element) {
    pyguide::narrow(value, element);
    std::memcpy(at(row, col), &element, sizeof element);
  });
}

Matrix& Matrix::randomize(uint64_t seed, double offset) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> offsets;
  for (int64_t j = 0; j < cols(); ++j) offsets.push_back(offset * normal(generator));
  for (int64_t i = 0; i < rows(); ++i) {
    for (int64_t j = 0; j < cols(); ++j) set(i, j, offsets[j] + normal(generator));
  }
  return *this;
}

Values Matrix::values() const {
  Values values;
  values.reserve(size_t(rows() * cols()));
  with_element(view_.dtype, [&](auto element) {
    for (int64_t i = 0; i < rows(); ++i) {
      for (int64_t j = 0; j < cols(); ++j) {
        std::memcpy(&element, at(i, j), sizeof element);
        values.push_back(double(pyguide::widen(element)));
      }
    }
  });
  return values;
}

bool Matrix::gaps_untouched() const {
  const int64_t size = pyguide::size_of(view_.dtype);
  std::vector<bool> owned(size_t(bytes_ / size), false);
  for (int64_t i = 0; i < rows(); ++i) {
    for (int64_t j = 0; j < cols(); ++j) owned[size_t((at(i, j) - data_.get()) / size)] = true;
  }
  for (int64_t b = 0; b < bytes_; ++b) {
    const auto byte = static_cast<unsigned char>(data_[size_t(b)]);
    if (byte != kGap && !owned[size_t(b / size)]) return false;
  }
  return true;
}

bool Matrix::same_bytes(const Matrix& other) const {
  return bytes_ == other.bytes_ &&
         std::memcmp(data_.get(), other.data_.get(), size_t(bytes_)) == 0;
}

Values Stack::values(int64_t layer) const {
  Values values(size_t(n_ * n_));
  const int64_t first = layer * n_ * n_;
  for (int64_t k = 0; k < n_ * n_; ++k) {
    values[size_t(k)] = dtype() == DType::kFloat64 ? static_cast<double*>(data())[first + k]
                                                   : static_cast<float*>(data())[first + k];
  }
  return values;
}

const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return kNames[int(dtype)];
}

const char* Matrix::layout() const {
  constexpr const char* kNames[] = {"contiguous", "transposed",    "gaps",       "transposed gaps",
                                    "equal rows", "equal columns", "overlapping"};
  return kNames[int(layout_)];
}
