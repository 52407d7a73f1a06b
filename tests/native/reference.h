// The formulas as plain double loops over row-major matrices.
#pragma once

#include <cstdint>
#include <string>

#include "core/matrix_view.h"
#include "matrix.h"

namespace reference {

// X minus its column means.
Values centered_columns(Values x, int64_t n, int64_t d);

// H K H for a symmetric K.
Values h_centered(const Values& k, int64_t n);

struct Gram {
  Values values;
  double trace;    // of the H-centred (or uncentred) matrix
  double largest;  // of its diagonal: the scale of rounding errors
  double norm_squared;
};

Gram gram(const Values& x, int64_t n, int64_t d, pyguide::Centering centering);

struct Product {
  Values values;
  Values scale;  // sums of the terms' magnitudes: what rounding errors are relative to
};

// A (n x n) times X (n x d); `offset` is added to each |x| of the scale.
Product product(const Values& a, const Values& x, int64_t n, int64_t d, double offset);

Values transposed(const Values& k, int64_t n);

double inner(const Values& a, const Values& b);

// Empty if |actual - expected| <= bound everywhere, else the first place where not.
std::string mismatch(const Values& actual, const Values& expected, const Values& bounds);
std::string mismatch(const Values& actual, const Values& expected, double bound);

}  // namespace reference
