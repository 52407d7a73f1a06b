// The entries of the CUDA library against plain loops, on buffers of exactly their size: under
// AddressSanitizer no kernel may touch a byte beside them. What is not written stays NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "cuda/api.h"
#include "matrix.h"
#include "reference.h"

using pyguide::Centering;
using pyguide::DType;
using pyguide::MatrixBatch;
using pyguide::cuda::Precision;

namespace {

constexpr pyguide::cuda::Target kTarget{0, nullptr};
// Around a warp's rows, the tiles of 64 and 128, and the 256 samples that one block centres.
constexpr int64_t kSamples[] = {4, 31, 64, 65, 128, 129, 260};
constexpr int64_t kWidths[] = {1, 7, 33, 130};

void succeed(const char* failure) { CHECK(!failure, failure); }

const pyguide::cuda::Api& api() {
  static const char* failure = pyguide_cuda_api()->open_device(0);
  succeed(failure);
  return *pyguide_cuda_api();
}

class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes), data_(new char[size_t(bytes)]) {
    std::memset(data_.get(), 0xff, size_t(bytes));
  }
  template <class T = void>
  T* get() const {
    return reinterpret_cast<T*>(data_.get());
  }
  pyguide::cuda::Workspace workspace() const { return {data_.get(), bytes_}; }

 private:
  int64_t bytes_;
  std::unique_ptr<char[]> data_;
};

// Layers of n samples that are compared token by token: token t has the t-th part of the columns.
class Layers {
 public:
  Layers(int64_t n, int64_t tokens) : n_(n), tokens_(tokens) {}

  void add(DType dtype, int64_t width, Layout layout) {
    layers_.push_back(std::make_unique<Matrix>(dtype, n_, width * tokens_, layout));
    MatrixBatch batch{layers_.back()->view(), tokens_, 0};
    batch.first.cols = width;
    batch.stride = width * batch.first.col_stride;
    batches_.push_back(batch);
  }

  void randomize() {
    for (size_t l = 0; l < layers_.size(); ++l) layers_[l]->randomize(l + 1);
  }

  int64_t count() const { return int64_t(layers_.size()); }
  int64_t matrices() const { return count() * tokens_; }
  int64_t n() const { return n_; }
  int64_t tokens() const { return tokens_; }
  int64_t width(int64_t matrix) const { return batches_[matrix / tokens_].first.cols; }
  DType dtype(int64_t matrix) const { return batches_[matrix / tokens_].first.dtype; }
  const Matrix& operator[](int64_t layer) const { return *layers_[layer]; }
  const MatrixBatch* batches() const { return batches_.data(); }

  // One token's matrix, row-major.
  Values values(int64_t matrix) const {
    const Matrix& layer = *layers_[matrix / tokens_];
    const int64_t d = width(matrix), first = matrix % tokens_ * d;
    Values values;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < d; ++j) values.push_back(layer.get(i, first + j));
    }
    return values;
  }

  std::string description(int64_t matrix) const {
    std::ostringstream text;
    text << n_ << " x " << width(matrix) << " " << name_of(dtype(matrix)) << ", "
         << layers_[matrix / tokens_]->layout() << ", matrix " << matrix;
    return text.str();
  }

 private:
  int64_t n_, tokens_;
  std::vector<std::unique_ptr<Matrix>> layers_;
  std::vector<MatrixBatch> batches_;
};

// Layers of every width and dtype; the layouts take turns.
Layers layers_of(int64_t n, int64_t tokens, const std::vector<DType>& dtypes, int layouts) {
  Layers layers(n, tokens);
  int turn = int(n);
  for (int64_t d : kWidths) {
    for (DType dtype : dtypes) layers.add(dtype, d, static_cast<Layout>(turn++ % layouts));
  }
  return layers;
}

constexpr int kInputLayouts = 7, kOutputLayouts = 4;

Layers inputs(int64_t n, int64_t tokens, const std::vector<DType>& dtypes) {
  Layers layers = layers_of(n, tokens, dtypes, kInputLayouts);
  layers.randomize();
  return layers;
}

const std::vector<DType> kEvery(std::begin(kDTypes), std::end(kDTypes));

// What rounding the operands may change; the sums of float32 are allowed 1e-5.
double tolerance(DType input, DType output, Precision precision) {
  if (input == DType::kFloat64) return output == DType::kFloat64 ? 1e-13 : 0x1p-22;
  if (input == DType::kFloat32 && precision == Precision::kHighest) return 1e-5;
  return input == DType::kFloat16 ? 0x1p-9 : 0x1p-6;
}

struct Grams {
  Stack stack;
  Buffer stats;

  Grams(const Layers& layers, DType dtype)
      : stack(dtype, layers.matrices(), layers.n()),
        stats(layers.matrices() * api().stat_chunks(layers.n()) * 2 * 8) {}

  pyguide::cuda::Stack view() const {
    return {stack.data(), stack.dtype(), stack.layers(), stack.n(), stack.n()};
  }
  // 0: the trace, 1: the squared norm.
  double stat(int64_t matrix, int which) const {
    double sum = 0;
    const int64_t chunks = api().stat_chunks(stack.n());
    for (int64_t c = 0; c < chunks; ++c) {
      sum += stats.get<double>()[(matrix * chunks + c) * 2 + which];
    }
    return sum;
  }
};

Grams grams_of(const Layers& layers, DType dtype, Centering centering, Precision precision) {
  Grams grams(layers, dtype);
  const Buffer workspace(
      api().gram_workspace(layers.batches(), layers.count(), layers.n(), precision, 0));
  succeed(api().gram(layers.batches(), layers.count(), centering, precision, grams.view(),
                     grams.stats.get<double>(), workspace.workspace(), kTarget));
  return grams;
}

void check_grams(const Layers& layers, DType dtype, Centering centering, Precision precision) {
  const Grams grams = grams_of(layers, dtype, centering, precision);
  for (int64_t m = 0; m < layers.matrices(); ++m) {
    const auto expected =
        reference::gram(layers.values(m), layers.n(), layers.width(m), centering);
    const double bound = tolerance(layers.dtype(m), dtype, precision) * expected.largest;
    const Values k = grams.stack.values(m);
    const std::string mismatch = reference::mismatch(k, expected.values, bound);
    CHECK(mismatch.empty(), layers.description(m) << ", " << mismatch);
    CHECK(k == reference::transposed(k, layers.n()), layers.description(m));
    if (centering == Centering::kNone) continue;
    const double most = double(layers.n()) * bound;
    CHECK(std::abs(grams.stat(m, 0) - expected.trace) <= most, layers.description(m) << ": trace");
    const double norm = std::sqrt(grams.stat(m, 1)) - std::sqrt(expected.norm_squared);
    CHECK(std::abs(norm) <= most, layers.description(m) << ": norm");
  }
}

// As pyguide/reference.py decides it.
bool is_degenerate(const Grams& grams, int64_t matrix) {
  const double epsilon = grams.stack.dtype() == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  const double trace = grams.stat(matrix, 0), norm = std::sqrt(grams.stat(matrix, 1));
  return trace == 0 || norm <= 16 * epsilon * trace;
}

// Pairs of neighbouring layers.
struct Neighbours {
  std::vector<int64_t> left, right;
  explicit Neighbours(int64_t layers) {
    for (int64_t l = 0; l + 1 < layers; ++l) {
      left.push_back(l);
      right.push_back(l + 1);
    }
  }
  int64_t count() const { return int64_t(left.size()); }
  pyguide::cuda::Pairs view(int64_t tokens) const {
    return {left.data(), right.data(), count(), tokens};
  }
};

// What alignment() found, and gradients of its values.
struct Alignment {
  Neighbours pairs;
  int64_t tokens;
  Buffer values, degenerate, grad;

  explicit Alignment(const Layers& layers)
      : pairs(layers.count()),
        tokens(layers.tokens()),
        values(count() * 8),
        degenerate(count()),
        grad(count() * 4) {
    for (int64_t r = 0; r < count(); ++r) grad.get<float>()[r] = float(r % 3) - 0.7f;
  }
  int64_t count() const { return pairs.count() * tokens; }
  int64_t left(int64_t result) const {
    return pairs.left[result / tokens] * tokens + result % tokens;
  }
  int64_t right(int64_t result) const {
    return pairs.right[result / tokens] * tokens + result % tokens;
  }
};

Alignment check_values(const Layers& layers, const Grams& grams) {
  Alignment alignment(layers);
  const Buffer workspace(
      api().alignment_workspace(alignment.pairs.count(), alignment.tokens, layers.n()));
  succeed(api().alignment(grams.view(), grams.stats.get<double>(),
                          alignment.pairs.view(alignment.tokens), alignment.values.get<double>(),
                          alignment.degenerate.get<uint8_t>(), workspace.workspace(), kTarget));
  for (int64_t r = 0; r < alignment.count(); ++r) {
    const int64_t left = alignment.left(r), right = alignment.right(r);
    const bool degenerate = is_degenerate(grams, left) || is_degenerate(grams, right);
    const double norms = std::sqrt(grams.stat(left, 1)) * std::sqrt(grams.stat(right, 1));
    const double inner = reference::inner(grams.stack.values(left), grams.stack.values(right));
    const double error = alignment.values.get<double>()[r] - (degenerate ? 0 : inner / norms);
    CHECK(std::abs(error) < 1e-12, layers.description(left) << ": error " << error);
    CHECK(alignment.degenerate.get<uint8_t>()[r] == degenerate, layers.description(left));
  }
  return alignment;
}

Values expected_coefficients(const Grams& grams, const Alignment& alignment, int64_t matrix) {
  const int64_t n = grams.stack.n();
  Values sum(size_t(n * n), 0.0);
  const Values own = grams.stack.values(matrix);
  const double norm = std::sqrt(grams.stat(matrix, 1));
  for (int64_t r = 0; r < alignment.count(); ++r) {
    const int64_t left = alignment.left(r), right = alignment.right(r);
    if ((left != matrix && right != matrix) || alignment.degenerate.get<uint8_t>()[r]) continue;
    const int64_t partner = left == matrix ? right : left;
    const Values other = grams.stack.values(partner);
    const double other_norm = std::sqrt(grams.stat(partner, 1));
    const double value = alignment.values.get<double>()[r];
    const double scale = 2 * double(alignment.grad.get<float>()[r]);
    for (size_t e = 0; e < sum.size(); ++e) {
      sum[e] += scale * (other[e] / norm / other_norm - value * own[e] / norm / norm);
    }
  }
  return sum;
}

int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

void check_coefficients(const Layers& layers, const Grams& grams, const Alignment& alignment) {
  const int64_t n = layers.n(), tokens = layers.tokens(), stride = padded(n);
  const DType dtype = grams.stack.dtype();
  std::vector<int64_t> wanted;
  for (int64_t l = layers.count() - 1; l >= 0; l -= 2) wanted.push_back(l);
  const int64_t matrices = int64_t(wanted.size()) * tokens;
  const Matrix out(dtype, matrices * n, stride);
  const Buffer bounds(matrices * 8);
  succeed(api().coefficients(grams.view(), grams.stats.get<double>(),
                             alignment.pairs.view(tokens), alignment.values.get<double>(),
                             alignment.degenerate.get<uint8_t>(), alignment.grad.get(),
                             DType::kFloat32, wanted.data(), int64_t(wanted.size()),
                             {out.view().data, dtype, matrices, n, stride}, bounds.get<double>(),
                             kTarget));
  for (int64_t m = 0; m < matrices; ++m) {
    const int64_t matrix = wanted[m / tokens] * tokens + m % tokens;
    const Values expected = expected_coefficients(grams, alignment, matrix);
    const double bound = bounds.get<double>()[m], rounding = 4 * rounding_of(dtype) * bound;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < stride; ++j) {
        const double entry = out.get(m * n + i, j);
        const double error = entry - (j < n ? expected[i * n + j] : 0);
        CHECK(std::abs(error) <= rounding, layers.description(matrix) << ": error " << error);
        CHECK(std::abs(entry) <= bound + rounding, layers.description(matrix) << ": bound");
      }
    }
  }
}

void check_alignment(const Layers& layers, DType dtype, Centering centering) {
  const Grams grams = grams_of(layers, dtype, centering, Precision::kHighest);
  check_coefficients(layers, grams, check_values(layers, grams));
}

// Symmetric matrices with padded rows, and rows that sum to zero if centred.
struct Coefficients {
  Matrix padded_rows;
  Buffer bounds;
  std::vector<Values> values;

  Coefficients(DType dtype, int64_t matrices, int64_t n, bool centered)
      : padded_rows(dtype, matrices * n, padded(n)), bounds(matrices * 8) {
    for (int64_t m = 0; m < matrices; ++m) add(m, n, centered);
  }

  pyguide::cuda::Stack view(int64_t n) const {
    const auto& rows = padded_rows.view();
    return {rows.data, rows.dtype, rows.rows / n, n, rows.cols};
  }

 private:
  void add(int64_t m, int64_t n, bool centered) {
    const Values x = Matrix(DType::kFloat64, n, n).randomize(uint64_t(m)).values();
    Values a(x);
    const Values transposed = reference::transposed(x, n);
    for (size_t e = 0; e < a.size(); ++e) a[e] += transposed[e];
    if (centered) a = reference::h_centered(a, n);
    double& bound = bounds.get<double>()[m] = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < padded_rows.cols(); ++j) {
        padded_rows.set(m * n + i, j, j < n ? a[i * n + j] : 0);
        if (j < n) a[i * n + j] = padded_rows.get(m * n + i, j);
        bound = std::max(bound, std::abs(padded_rows.get(m * n + i, j)));
      }
    }
    values.push_back(a);
  }
};

// A X, or A (X - s), for every dtype.
void check_apply(int64_t n, int64_t tokens, const std::vector<DType>& dtypes, DType dtype,
                 bool shifted, Precision precision) {
  const Layers layers = inputs(n, tokens, dtypes);
  const Layers outs = layers_of(n, tokens, dtypes, kOutputLayouts);
  const Coefficients a(dtype, layers.matrices(), n, shifted);
  succeed(api().apply(a.view(n), a.bounds.get<double>(), layers.batches(), outs.batches(),
                      layers.count(), shifted, precision, kTarget));
  for (int64_t m = 0; m < layers.matrices(); ++m) {
    Values x = layers.values(m);
    if (shifted) x = reference::centered_columns(x, n, layers.width(m));
    const auto expected =
        reference::product(a.values[m], x, n, layers.width(m), shifted ? 1 : 0);
    Values allowed = expected.scale;
    for (double& scale : allowed) scale *= tolerance(layers.dtype(m), dtype, precision);
    const std::string mismatch = reference::mismatch(outs.values(m), expected.values, allowed);
    CHECK(mismatch.empty(), layers.description(m) << ", " << mismatch);
  }
  for (int64_t l = 0; l < outs.count(); ++l) CHECK(outs[l].gaps_untouched(), "layer " << l);
}

}  // namespace

TEST(api_gram_of_every_dtype) {
  for (int64_t n : kSamples) {
    for (Centering centering : {Centering::kNone, Centering::kH, Centering::kU}) {
      if (n > 200 && centering == Centering::kH) continue;
      check_grams(inputs(n, 1, kEvery), DType::kFloat32, centering, Precision::kHighest);
    }
    check_grams(inputs(n, 1, {DType::kFloat64}), DType::kFloat64, Centering::kU,
                Precision::kHighest);
  }
}

TEST(api_gram_of_every_precision) {
  for (int64_t n : {20, 65, 129}) {
    for (Precision precision : {Precision::kHighest, Precision::kHigh, Precision::kMedium}) {
      check_grams(inputs(n, 1, {DType::kFloat32}), DType::kFloat32, Centering::kH, precision);
    }
  }
}

TEST(api_gram_of_tokens) {
  for (int64_t n : {9, 66}) {
    check_grams(inputs(n, 3, kEvery), DType::kFloat32, Centering::kU, Precision::kHighest);
  }
}

TEST(api_gram_of_wide_layers) {
  // A block's pipeline goes round several times.
  Layers layers(20, 1);
  layers.add(DType::kFloat32, 4500, Layout::kContiguous);
  layers.add(DType::kBFloat16, 9001, Layout::kGaps);
  layers.randomize();
  check_grams(layers, DType::kFloat32, Centering::kH, Precision::kHighest);
}

TEST(api_alignment) {
  for (int64_t n : {4, 65, 129, 260}) {
    check_alignment(inputs(n, 1, {DType::kFloat32}), DType::kFloat32, Centering::kH);
    check_alignment(inputs(n, 1, {DType::kFloat64}), DType::kFloat64, Centering::kU);
  }
  check_alignment(inputs(17, 3, {DType::kFloat32}), DType::kFloat32, Centering::kU);
}

TEST(api_apply_to_every_dtype) {
  for (int64_t n : kSamples) {
    const bool shifted = n % 2 == 0;
    check_apply(n, 1, kEvery, DType::kFloat32, shifted, Precision::kHighest);
    check_apply(n, 1, {DType::kFloat64}, DType::kFloat64, !shifted, Precision::kHighest);
  }
  // More samples than one chain of sums may hold.
  check_apply(520, 1, {DType::kBFloat16}, DType::kFloat32, true, Precision::kHighest);
}

TEST(api_apply_at_every_precision) {
  for (int64_t n : {20, 65, 129}) {
    for (Precision precision : {Precision::kHighest, Precision::kHigh, Precision::kMedium}) {
      check_apply(n, 1, {DType::kFloat32}, DType::kFloat32, true, precision);
    }
  }
}

TEST(api_apply_to_tokens) {
  check_apply(17, 3, kEvery, DType::kFloat32, true, Precision::kHighest);
}
