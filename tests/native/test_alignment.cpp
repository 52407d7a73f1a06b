// Inner products of Gram matrices and the coefficients of their gradients, against plain loops.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"
#include "reference.h"

using namespace pyguide;
using cpu::LayerStats;
using cpu::Pair;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// Around the chunk of an inner product (2^14 = 128^2 entries) and of a row (512).
constexpr int64_t kSizes[] = {2, 3, 15, 16, 17, 33, 127, 128, 129, 182, 257, 511, 513};
constexpr int64_t kLayers = 4;
const std::vector<Pair> kPairs = {{0, 1}, {1, 2}, {0, 1}, {2, 2}, {3, 0}};

// Symmetric matrices with a positive inner product, and their statistics.
struct Grams {
  Grams(DType dtype, int64_t n) : stack(dtype, kLayers, n), stats(kLayers) {
    for (int64_t l = 0; l < kLayers; ++l) {
      const auto values = Matrix(DType::kFloat64, n, n).randomize(uint64_t(10 * n + l)).values();
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          stack.set(l, i, j, 0.3 + values[i * n + j] + values[j * n + i]);
          stats[l].norm_squared += stack.get(l, i, j) * stack.get(l, i, j);
        }
      }
      stats[l].trace = 1;
    }
  }

  double norm(int64_t layer) const { return std::sqrt(stats[layer].norm_squared); }
  double value(const Pair& pair) const {
    const double inner = reference::inner(stack.values(pair.left), stack.values(pair.right));
    return inner / norm(pair.left) / norm(pair.right);
  }
  cpu::GramStack view() const {
    return {stack.data(), stack.dtype(), stack.layers(), stack.n()};
  }

  Stack stack;
  std::vector<LayerStats> stats;
};

// A of csrc/cpu/ops.h.
Values coefficient_matrix(const Grams& grams, int64_t layer, const std::vector<double>& values,
                          const std::vector<double>& grad) {
  Values a(size_t(grams.stack.n() * grams.stack.n()));
  const auto add = [&](double factor, int64_t other) {
    const Values k = grams.stack.values(other);
    for (size_t e = 0; e < a.size(); ++e) a[e] += factor * k[e];
  };
  for (size_t p = 0; p < kPairs.size(); ++p) {
    const auto [left, right] = kPairs[p];
    const double both = grams.norm(left) * grams.norm(right);
    const double self = values[p] / grams.stats[size_t(layer)].norm_squared;
    if (left == layer) add(2 * grad[p] / both, right), add(-2 * grad[p] * self, layer);
    if (right == layer) add(2 * grad[p] / both, left), add(-2 * grad[p] * self, layer);
  }
  return a;
}

double largest(const Values& values) {
  double magnitude = 0;
  for (double value : values) magnitude = std::max(magnitude, std::abs(value));
  return magnitude;
}

void check_coefficients(const Grams& grams, const std::vector<double>& values) {
  const int64_t n = grams.stack.n();
  const DType dtype = grams.stack.dtype();
  const std::vector<double> grad = {1, -2, 0.5, 0, 3};
  const std::vector<int64_t> wanted = {3, 0, 2, 1, 0};
  const std::vector<uint8_t> degenerate(kPairs.size(), 0);
  std::vector<Values> expected;
  for (int64_t w : wanted) expected.push_back(coefficient_matrix(grams, w, values, grad));
  for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
    Stack out(dtype, int64_t(wanted.size()), n);
    cpu::coefficients(grams.view(), grams.stats.data(), kPairs, values.data(), degenerate.data(),
                      grad.data(), wanted, out.data(), kernels, threads);
    for (size_t w = 0; w < wanted.size(); ++w) {
      const double bound = (dtype == DType::kFloat64 ? 1e-13 : 0x1p-22) * largest(expected[w]);
      const std::string mismatch = reference::mismatch(out.values(int64_t(w)), expected[w], bound);
      CHECK(mismatch.empty(), "n " << n << ", " << kernels.name << ", threads " << threads << ", "
                                   << mismatch);
    }
  });
}

}  // namespace

TEST(alignment_and_coefficients) {
  for (int64_t n : kSizes) {
    for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
      const Grams grams(dtype, n);
      std::vector<double> expected;
      for (const Pair& pair : kPairs) expected.push_back(grams.value(pair));
      for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
        std::vector<double> values(kPairs.size(), kNan);
        std::vector<uint8_t> degenerate(kPairs.size(), 7);
        cpu::alignment(grams.view(), grams.stats.data(), kPairs, values.data(), degenerate.data(),
                       kernels, threads);
        for (size_t p = 0; p < kPairs.size(); ++p) {
          CHECK(std::abs(values[p] - expected[p]) < 1e-12 && degenerate[p] == 0,
                "n " << n << ", pair " << p << ": " << values[p] << " instead of " << expected[p]);
        }
        CHECK(values[0] == values[2], "the same pair twice");
      });
      check_coefficients(grams, expected);
    }
  }
}

TEST(degenerate_pairs_have_value_zero_unless_nan) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Grams grams(dtype, 20);
    const double eps = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
    grams.stats[1].trace = grams.norm(1) / (17 * eps);  // just not degenerate
    grams.stats[2].trace = grams.norm(2) / (15 * eps);  // just degenerate
    grams.stats[3] = {0, 0};                            // constant features
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t j = 0; j < 20; ++j) grams.stack.set(3, i, j, 0);
    }
    const std::vector<Pair> pairs = {{0, 1}, {1, 1}, {0, 2}, {2, 1}, {3, 3}, {0, 3}};
    std::vector<double> values(6), grad(6, 1.0);
    std::vector<uint8_t> flags(6);
    const auto align = [&] {
      cpu::alignment(grams.view(), grams.stats.data(), pairs, values.data(), flags.data(),
                     cpu::kernel_set(""), 2);
    };
    align();
    CHECK((flags == std::vector<uint8_t>{0, 0, 1, 1, 1, 1}), name_of(dtype));
    for (size_t p = 0; p < 6; ++p) CHECK((values[p] == 0) == bool(flags[p]), "pair " << p);

    Stack out(dtype, 2, 20);
    cpu::coefficients(grams.view(), grams.stats.data(), pairs, values.data(), flags.data(),
                      grad.data(), {2, 3}, out.data(), cpu::kernel_set(""), 2);
    for (int64_t i = 0; i < 20; ++i) {
      CHECK(out.get(0, i, 3) == 0 && out.get(1, i, 3) == 0, "no gradient");
    }

    grams.stack.set(0, 4, 5, kNan);
    grams.stats[0] = {kNan, kNan};
    align();
    for (size_t p : {0, 2, 5}) CHECK(std::isnan(values[p]) && flags[p] == 0, "pair " << p);
    CHECK(values[4] == 0 && flags[4] == 1, "the pair without NaN");
  }
}

TEST(symmetrize_and_center) {
  for (int64_t n : kSizes) {
    for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
      Stack grads(dtype, kLayers, n);
      std::vector<Values> sums, centered;
      for (int64_t l = 0; l < kLayers; ++l) {
        const auto values = Matrix(DType::kFloat64, n, n).randomize(uint64_t(n + l)).values();
        Values sum(n * n);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < n; ++j) grads.set(l, i, j, values[i * n + j]);
        }
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            sum[i * n + j] = grads.get(l, i, j) + grads.get(l, j, i);
          }
        }
        centered.push_back(reference::h_centered(sum, n));
        sums.push_back(std::move(sum));
      }
      for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
        for (bool center : {false, true}) {
          Stack out(dtype, kLayers, n);
          cpu::symmetrize({grads.data(), dtype, kLayers, n},
                          center ? Centering::kH : Centering::kNone, out.data(), kernels, threads);
          for (int64_t l = 0; l < kLayers; ++l) {
            const std::string mismatch =
                reference::mismatch(out.values(l), (center ? centered : sums)[size_t(l)],
                                    dtype == DType::kFloat64 ? 1e-13 : 2e-6);
            CHECK(mismatch.empty(), "n " << n << ", " << kernels.name << ", threads " << threads
                                         << ", " << mismatch);
          }
        }
      });
    }
  }
}
