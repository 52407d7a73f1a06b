// A strided matrix that somebody else owns: n samples (rows) by d features (columns).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pyguide {

struct MatrixView {
  void* data;
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;  // in elements
  int64_t col_stride;
};

// Matrices of one shape, a constant step apart: the tokens of a layer, each compared on its own.
// A layer that is compared as a whole is a batch of one.
struct MatrixBatch {
  MatrixView first;
  int64_t count = 1;
  int64_t stride = 0;  // in elements

  MatrixView operator[](int64_t i) const {
    MatrixView view = first;
    view.data = static_cast<char*>(first.data) + i * stride * size_of(first.dtype);
    return view;
  }
};

// How a Gram matrix is centred. Both are orthogonal projections with zero row sums.
enum class Centering : int {
  kNone = 0,
  kH = 1,  // H K H: biased estimator (Kornblith et al. 2019)
  kU = 2,  // U-centring: debiased estimator (Székely & Rizzo 2014); the diagonal is zero
};

}  // namespace pyguide
