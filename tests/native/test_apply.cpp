// Products of coefficients with layers against plain loops.
#include <cmath>
#include <limits>
#include <utility>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"
#include "reference.h"

using namespace pyguide;
using cpu::ApplyProblem;

namespace {

// Symmetric matrices; with zero row sums if centred.
Stack random_coefficients(DType dtype, int64_t layers, int64_t n, bool centered) {
  Stack stack(dtype, layers, n);
  for (int64_t l = 0; l < layers; ++l) {
    const auto values = Matrix(DType::kFloat64, n, n).randomize(uint64_t(7 * n + l)).values();
    Values sum(n * n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) sum[i * n + j] = values[i * n + j] + values[j * n + i];
    }
    if (centered) sum = reference::h_centered(sum, n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) stack.set(l, i, j, sum[i * n + j]);
    }
  }
  return stack;
}

// What rounding may change: the products, their sums and the output, which has the layer's dtype.
Values bounds_for(const reference::Product& expected, DType layer, DType coefficients) {
  const bool all_double = layer == DType::kFloat64 && coefficients == DType::kFloat64;
  const double arithmetic = all_double ? 1e-14 : 2e-6;
  const double smallest = layer == DType::kFloat16 ? 0x1p-24 : 0;  // subnormal results
  Values bounds;
  for (size_t k = 0; k < expected.values.size(); ++k) {
    bounds.push_back(rounding_of(layer) * std::abs(expected.values[k]) +
                     arithmetic * expected.scale[k] + smallest);
  }
  return bounds;
}

void check_layers(int64_t n, const std::vector<DType>& dtypes, DType coefficients, bool shifted) {
  const auto layers = layers_for(n, dtypes);
  const Stack a = random_coefficients(coefficients, int64_t(layers.size()), n, shifted);
  std::vector<reference::Product> expected;
  std::vector<Values> bounds;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Matrix& x = *layers[l];
    Values features = x.values();
    if (shifted) features = reference::centered_columns(std::move(features), n, x.cols());
    expected.push_back(
        reference::product(a.values(int64_t(l)), features, n, x.cols(), shifted ? 1 : 0));
    bounds.push_back(bounds_for(expected[l], x.view().dtype, coefficients));
  }
  for_each_configuration([&](const cpu::KernelSet& kernels, int threads) {
    const auto outs = layers_for(n, dtypes, true);
    const auto apply_to = [&](const std::vector<std::unique_ptr<Matrix>>& to) {
      std::vector<ApplyProblem> problems;
      for (size_t l = 0; l < layers.size(); ++l) {
        const int64_t bytes = int64_t(l) * n * n * size_of(coefficients);
        problems.push_back(
            {static_cast<const char*>(a.data()) + bytes, layers[l]->view(), to[l]->view()});
      }
      cpu::apply(problems, coefficients, shifted, kernels, threads);
    };
    apply_to(outs);
    for (size_t l = 0; l < layers.size(); ++l) {
      const Matrix& x = *layers[l];
      std::ostringstream where;
      where << n << " x " << x.cols() << " " << name_of(x.view().dtype) << ", " << x.layout()
            << " to " << outs[l]->layout() << ", shifted " << shifted << ", " << kernels.name
            << ", " << threads << " threads";
      const std::string mismatch =
          reference::mismatch(outs[l]->values(), expected[l].values, bounds[l]);
      CHECK(mismatch.empty(), where.str() << ", " << mismatch);
      CHECK(outs[l]->gaps_untouched(), where.str() << ": a gap of the output was written");
    }
    if (threads != 3) return;
    const auto again = layers_for(n, dtypes, true);
    apply_to(again);
    for (size_t l = 0; l < layers.size(); ++l) {
      CHECK(outs[l]->same_bytes(*again[l]), "n " << n << ": repeated, the bits differ");
    }
  });
}

}  // namespace

TEST(apply_to_few_samples) {
  for (int64_t n : kSamples) {
    if (n >= 100) continue;
    for (bool shifted : {false, true}) {
      check_layers(n, {std::begin(kDTypes), std::end(kDTypes)}, DType::kFloat32, shifted);
      check_layers(n, {DType::kFloat64}, DType::kFloat64, shifted);
    }
  }
}

TEST(apply_to_many_samples) {
  for (int64_t n : kSamples) {
    if (n < 100) continue;
    const DType half = n % 2 ? DType::kBFloat16 : DType::kFloat16;
    check_layers(n, {DType::kFloat32, half}, DType::kFloat32, n % 3 == 0);
    check_layers(n, {DType::kFloat64}, n % 2 ? DType::kFloat64 : DType::kFloat32, n % 3 != 0);
  }
}

TEST(apply_propagates_nan_and_infinity) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int64_t n : {3, 40, 520}) {
    for (DType dtype : kDTypes) {
      for (double bad : {nan, double(INFINITY)}) {
        Matrix x(dtype, n, 21), out(dtype, n, 21);
        x.randomize(5).set(n - 1, 20, bad);
        const Stack a = random_coefficients(DType::kFloat32, 1, n, true);
        cpu::apply({{a.data(), x.view(), out.view()}}, DType::kFloat32, true, cpu::kernel_set(""),
                   2);
        for (int64_t i = 0; i < n; ++i) {
          CHECK(!std::isfinite(out.get(i, 20)), name_of(dtype) << ", n " << n << ", row " << i);
          CHECK(std::isfinite(out.get(i, 19)), name_of(dtype) << ": only that feature");
        }
      }
    }
  }
}

TEST(apply_of_no_layers) { cpu::apply({}, DType::kFloat32, true, cpu::kernel_set(""), 2); }
