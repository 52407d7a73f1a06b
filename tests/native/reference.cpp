#include "reference.h"

#include <cmath>
#include <sstream>

namespace {

Values product_with_transpose(const Values& x, int64_t n, int64_t d) {
  Values k(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += x[i * d + c] * x[j * d + c];
      k[i * n + j] = k[j * n + i] = sum;
    }
  }
  return k;
}

// Székely & Rizzo 2014: off the diagonal K_ij - (r_i + r_j)/(n-2) + s/((n-1)(n-2)), with r and s
// the sums without the diagonal.
Values u_centered(const Values& k, int64_t n) {
  Values r(n);
  double s = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) r[i] += i == j ? 0 : k[i * n + j];
    s += r[i];
  }
  Values u(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i == j) continue;
      const double rows = (r[i] + r[j]) / double(n - 2);
      u[i * n + j] = k[i * n + j] - rows + s / double(n - 1) / double(n - 2);
    }
  }
  return u;
}

}  // namespace

namespace reference {

Values centered_columns(Values x, int64_t n, int64_t d) {
  for (int64_t j = 0; j < d; ++j) {
    double mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += (x[i * d + j] - x[j]) / double(n);
    mean += x[j];
    for (int64_t i = 0; i < n; ++i) x[i * d + j] -= mean;
  }
  return x;
}

Values h_centered(const Values& k, int64_t n) {
  Values r(n);
  double m = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) r[i] += k[i * n + j] / double(n);
    m += r[i] / double(n);
  }
  Values h(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) h[i * n + j] = k[i * n + j] - r[i] - r[j] + m;
  }
  return h;
}

Gram gram(const Values& x, int64_t n, int64_t d, pyguide::Centering centering) {
  const bool centered = centering != pyguide::Centering::kNone;
  Gram gram{product_with_transpose(centered ? centered_columns(x, n, d) : x, n, d), 0, 0, 0};
  for (int64_t i = 0; i < n; ++i) {
    gram.trace += gram.values[i * n + i];
    if (gram.values[i * n + i] > gram.largest) gram.largest = gram.values[i * n + i];
  }
  if (centering == pyguide::Centering::kU) gram.values = u_centered(gram.values, n);
  for (double value : gram.values) gram.norm_squared += value * value;
  return gram;
}

Product product(const Values& a, const Values& x, int64_t n, int64_t d, double offset) {
  Product product{Values(n * d), Values(n * d)};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < n; ++k) {
      const double factor = a[i * n + k];
      for (int64_t j = 0; j < d; ++j) {
        product.values[i * d + j] += factor * x[k * d + j];
        product.scale[i * d + j] += std::abs(factor) * (std::abs(x[k * d + j]) + offset);
      }
    }
  }
  return product;
}

Values transposed(const Values& k, int64_t n) {
  Values t(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) t[j * n + i] = k[i * n + j];
  }
  return t;
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
  return sum;
}

std::string mismatch(const Values& actual, const Values& expected, const Values& bounds) {
  for (size_t k = 0; k < actual.size(); ++k) {
    if (std::abs(actual[k] - expected[k]) <= bounds[k]) continue;
    std::ostringstream text;
    text.precision(17);
    text << "entry " << k << ": " << actual[k] << " instead of " << expected[k] << " +- "
         << bounds[k];
    return text.str();
  }
  return "";
}

std::string mismatch(const Values& actual, const Values& expected, double bound) {
  return mismatch(actual, expected, Values(actual.size(), bound));
}

}  // namespace reference
