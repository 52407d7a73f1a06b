// Gram matrices against plain loops.
#include <cmath>
#include <limits>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"
#include "reference.h"

using namespace pyguide;
using pyguide::cpu::LayerStats;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Centering kCenterings[] = {Centering::kNone, Centering::kH, Centering::kU};

// Relative to the largest entry of the diagonal.
double tolerance(DType input, DType output) {
  if (input != DType::kFloat64) return 3e-6;
  return output == DType::kFloat64 ? 1e-13 : 0x1p-22;
}

void check_gram(const Matrix& x, const reference::Gram& expected, const Stack& grams, int64_t layer,
                const std::string& where) {
  const double bound = tolerance(x.view().dtype, grams.dtype()) * expected.largest;
  const std::string mismatch = reference::mismatch(grams.values(layer), expected.values, bound);
  CHECK(mismatch.empty(), where << ", " << mismatch);
}

void check_symmetric(const Stack& grams, const std::string& where) {
  for (int64_t l = 0; l < grams.layers(); ++l) {
    const Values k = grams.values(l);
    CHECK(k == reference::transposed(k, grams.n()), where << ", layer " << l);
  }
}

void check_stats(const LayerStats& stats, const reference::Gram& expected, const Matrix& x,
                 const Stack& grams, const std::string& where) {
  const double n = double(grams.n());
  const double tol = tolerance(x.view().dtype, grams.dtype());
  CHECK(std::abs(stats.trace - expected.trace) <= n * tol * expected.largest,
        where << ": trace " << stats.trace << " instead of " << expected.trace);
  const double norm = std::sqrt(expected.norm_squared);
  CHECK(std::abs(std::sqrt(stats.norm_squared) - norm) <= n * tol * expected.largest,
        where << ": norm^2 " << stats.norm_squared << " instead of " << expected.norm_squared);
}

std::string description(const Matrix& x, Centering centering, const cpu::KernelSet& kernels,
                        int threads) {
  std::ostringstream text;
  text << x.rows() << " x " << x.cols() << " " << name_of(x.view().dtype) << ", "
       << x.layout() << ", centering " << int(centering) << ", " << kernels.name << ", "
       << threads << " threads";
  return text.str();
}

void check_layers(int64_t n, const std::vector<DType>& dtypes, DType output) {
  const auto layers = layers_for(n, dtypes);
  const std::vector<MatrixView> views = views_of(layers);
  for (Centering centering : kCenterings) {
    if (centering == Centering::kU && n < 4) continue;
    std::vector<reference::Gram> expected;
    for (const auto& x : layers) {
      expected.push_back(reference::gram(x->values(), n, x->cols(), centering));
    }
    for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
      Stack grams(output, int64_t(layers.size()), n);
      std::vector<LayerStats> stats(layers.size());
      LayerStats* filled = centering == Centering::kNone ? nullptr : stats.data();
      cpu::gram(views, centering, {grams.data(), output, grams.layers(), n}, filled, kernels,
                threads);
      for (size_t l = 0; l < layers.size(); ++l) {
        const std::string where = description(*layers[l], centering, kernels, threads);
        check_gram(*layers[l], expected[l], grams, int64_t(l), where);
        if (filled) check_stats(stats[l], expected[l], *layers[l], grams, where);
      }
      check_symmetric(grams, description(*layers[0], centering, kernels, threads));
      if (threads != 3) return;
      Stack again(output, int64_t(layers.size()), n);
      cpu::gram(views, centering, {again.data(), output, again.layers(), n}, filled, kernels,
                threads);
      CHECK(grams.same_bytes(again), "n " << n << ": repeated, the bits differ");
    });
  }
}

}  // namespace

TEST(gram_of_few_samples) {
  for (int64_t n : kSamples) {
    if (n >= 100) continue;
    check_layers(n, {std::begin(kDTypes), std::end(kDTypes)}, DType::kFloat32);
    check_layers(n, {DType::kFloat64}, DType::kFloat64);
  }
}

TEST(gram_of_many_samples) {
  for (int64_t n : kSamples) {
    if (n < 100) continue;
    check_layers(n, {DType::kFloat32, n % 2 ? DType::kBFloat16 : DType::kFloat16}, DType::kFloat32);
    check_layers(n, {DType::kFloat64}, n % 2 ? DType::kFloat64 : DType::kFloat32);
  }
}

TEST(gram_of_one_wide_layer) {
  // All threads share each block, and sum its panels in the order of the threads.
  const Matrix x = std::move(Matrix(DType::kFloat32, 40, 9001).randomize(1));
  const reference::Gram expected = reference::gram(x.values(), 40, 9001, Centering::kH);
  for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
    Stack grams(DType::kFloat32, 1, 40);
    LayerStats stats;
    cpu::gram({x.view()}, Centering::kH, {grams.data(), DType::kFloat32, 1, 40}, &stats, kernels,
              threads);
    check_gram(x, expected, grams, 0, description(x, Centering::kH, kernels, threads));
  });
}

TEST(gram_of_offset_features) {
  // Features 1000 standard deviations from zero: only the shift saves the float32 products.
  const Matrix x = std::move(Matrix(DType::kFloat32, 60, 300).randomize(2, 1000));
  for (Centering centering : {Centering::kH, Centering::kU}) {
    const reference::Gram expected = reference::gram(x.values(), 60, 300, centering);
    for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
      Stack grams(DType::kFloat32, 1, 60);
      LayerStats stats;
      cpu::gram({x.view()}, centering, {grams.data(), DType::kFloat32, 1, 60}, &stats, kernels,
                threads);
      check_gram(x, expected, grams, 0, description(x, centering, kernels, threads));
    });
  }
}

TEST(gram_of_constant_features_is_zero) {
  for (int64_t n : {4, 17, 257}) {
    for (DType dtype : kDTypes) {
      Matrix x(dtype, n, 70, Layout::kEqualRows);
      x.randomize(3, 100);
      for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
        Stack grams(DType::kFloat32, 1, n);
        LayerStats stats;
        cpu::gram({x.view()}, Centering::kH, {grams.data(), DType::kFloat32, 1, n}, &stats, kernels,
                  threads);
        CHECK(stats.trace == 0 && stats.norm_squared == 0, name_of(dtype) << ", n " << n);
      });
    }
  }
}

TEST(gram_propagates_nan_and_infinity) {
  for (int64_t n : {5, 33, 257}) {
    for (DType dtype : kDTypes) {
      for (double bad : {kNan, double(INFINITY), -double(INFINITY)}) {
        for (int64_t row : {int64_t(0), n / 2, n - 1}) {
          Matrix x(dtype, n, 19);
          x.randomize(4).set(row, 11, bad);
          Stack grams(DType::kFloat32, 1, n);
          LayerStats stats;
          const auto call = [&](Centering centering) {
            cpu::gram({x.view()}, centering, {grams.data(), DType::kFloat32, 1, n}, &stats,
                      cpu::kernel_set(""), 2);
          };
          call(Centering::kNone);
          CHECK(!std::isfinite(grams.get(0, row, row)), name_of(dtype) << ", row " << row);
          const int64_t other = row == 0 ? 1 : 0;
          CHECK(std::isfinite(grams.get(0, other, other)), "only that sample's products");
          for (Centering centering : {Centering::kH, Centering::kU}) {
            call(centering);
            CHECK(std::isnan(stats.norm_squared), name_of(dtype) << ", row " << row);
          }
        }
      }
    }
  }
}
