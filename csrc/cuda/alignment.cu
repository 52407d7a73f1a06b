// Values of pairs and the coefficients of their gradients: starts the kernels of alignment.h.
#include "cuda/alignment.h"

#include <algorithm>
#include <vector>

#include "core/rounding.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace pyguide::cuda {
namespace {

// Entries of an inner product that one block sums, and of a coefficient matrix that it writes.
constexpr int64_t kEntries = 1 << 16;
constexpr int64_t kCoefficients = 1 << 13;

int64_t alignment_chunks(int64_t n) { return ceil_div(n * n, kEntries); }

double epsilon_of(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23; }

const char* launch_alignment(const AlignmentParams& params, DType dtype, void* stream) {
  const int64_t values = int64_t(params.pairs) * params.tokens;
  const int64_t blocks = values * params.chunks;
  const char* error = dtype == DType::kFloat64 ? launch<Alignment<double>>(blocks, params, stream)
                                               : launch<Alignment<float>>(blocks, params, stream);
  if (error != nullptr || params.chunks == 1) return error;
  return launch<AlignmentFinish>(values, params, stream);
}

using Term = CoefficientParams::Term;

// For each wanted layer, the pairs that contain it, in their order.
std::vector<std::vector<Term>> terms_of(const Pairs& pairs, const int64_t* wanted, int64_t count) {
  std::vector<std::vector<Term>> of_layer;
  for (int64_t p = 0; p < pairs.count; ++p) {
    const auto largest = size_t(std::max(pairs.left[p], pairs.right[p]));
    if (of_layer.size() <= largest) of_layer.resize(largest + 1);
    of_layer[pairs.left[p]].push_back({int32_t(p), int32_t(pairs.right[p])});
    of_layer[pairs.right[p]].push_back({int32_t(p), int32_t(pairs.left[p])});
  }
  std::vector<std::vector<Term>> terms;
  for (int64_t w = 0; w < count; ++w) {
    const bool used = wanted[w] < int64_t(of_layer.size());
    terms.push_back(used ? of_layer[wanted[w]] : std::vector<Term>());
  }
  return terms;
}

// Collects layers and their terms, and launches when the parameters are full.
class CoefficientLaunches {
 public:
  CoefficientLaunches(CoefficientParams& params, DType dtype, void* stream)
      : params_(params), dtype_(dtype), stream_(stream) {}

  const char* add(int64_t layer, int64_t out, const std::vector<Term>& terms) {
    size_t next = 0;
    do {
      if (layers_ == kMaxLayers || terms_ == kMaxPairs) {
        if (const char* error = flush()) return error;
      }
      const size_t taken = std::min(terms.size() - next, size_t(kMaxPairs - terms_));
      std::copy_n(terms.begin() + next, taken, params_.term + terms_);
      params_.layer[layers_++] = {int32_t(layer), int32_t(terms_), int32_t(terms_ + taken), out,
                                  next > 0};
      terms_ += int(taken);
      next += taken;
    } while (next < terms.size());
    return nullptr;
  }

  const char* flush() {
    if (layers_ == 0) return nullptr;
    const int64_t blocks = int64_t(layers_) * params_.tokens * params_.chunks;
    layers_ = terms_ = 0;
    return dtype_ == DType::kFloat64 ? launch<Coefficients<double>>(blocks, params_, stream_)
                                     : launch<Coefficients<float>>(blocks, params_, stream_);
  }

 private:
  CoefficientParams& params_;
  DType dtype_;
  void* stream_;
  int layers_ = 0;
  int terms_ = 0;
};

}  // namespace

int64_t alignment_workspace(int64_t pairs, int64_t tokens, int64_t n) {
  const int64_t chunks = alignment_chunks(n);
  return chunks == 1 ? 0 : pairs * tokens * chunks * 8;
}

const char* alignment(Stack grams, const double* stats, Pairs pairs, double* values,
                      uint8_t* degenerate, Workspace workspace, Target target) {
  if (workspace.bytes < alignment_workspace(pairs.count, pairs.tokens, grams.n)) {
    return "alignment: the workspace is too small";
  }
  AlignmentParams params;
  params.grams = grams.data;
  params.stats = stats;
  params.partial = static_cast<double*>(workspace.data);
  params.values = values;
  params.degenerate = degenerate;
  params.n = grams.n;
  params.tokens = int32_t(pairs.tokens);
  params.chunks = int32_t(alignment_chunks(grams.n));
  params.stat_chunks = int32_t(stat_chunks(grams.n));
  params.epsilon = epsilon_of(grams.dtype);
  for (int64_t first = 0; first < pairs.count; first += kMaxPairs) {
    params.first_pair = first;
    params.pairs = int32_t(std::min<int64_t>(kMaxPairs, pairs.count - first));
    std::copy_n(pairs.left + first, params.pairs, params.left);
    std::copy_n(pairs.right + first, params.pairs, params.right);
    if (const char* error = launch_alignment(params, grams.dtype, target.stream)) return error;
  }
  return nullptr;
}

const char* coefficients(Stack grams, const double* stats, Pairs pairs, const double* values,
                         const uint8_t* degenerate, const void* grad, DType grad_dtype,
                         const int64_t* wanted, int64_t wanted_count, Stack out, double* bounds,
                         Target target) {
  CoefficientParams params;
  params.grams = grams.data;
  params.stats = stats;
  params.values = values;
  params.degenerate = degenerate;
  params.grad = grad;
  params.grad_in_double = grad_dtype == DType::kFloat64;
  params.out = out.data;
  params.bounds = bounds;
  params.n = grams.n;
  params.row_stride = out.row_stride;
  params.tokens = int32_t(pairs.tokens);
  params.stat_chunks = int32_t(stat_chunks(grams.n));
  params.chunks = int32_t(std::min(grams.n, ceil_div(grams.n * out.row_stride, kCoefficients)));
  const auto terms = terms_of(pairs, wanted, wanted_count);
  CoefficientLaunches launches(params, grams.dtype, target.stream);
  for (int64_t w = 0; w < wanted_count; ++w) {
    if (const char* error = launches.add(wanted[w], w * pairs.tokens, terms[w])) return error;
  }
  return launches.flush();
}

const char* prepare_alignment() {
  if (const char* error = prepare<Alignment<float>>()) return error;
  if (const char* error = prepare<Alignment<double>>()) return error;
  if (const char* error = prepare<AlignmentFinish>()) return error;
  if (const char* error = prepare<Coefficients<float>>()) return error;
  return prepare<Coefficients<double>>();
}

}  // namespace pyguide::cuda
