#include "training_step.h"

using namespace pyguide;

namespace {

constexpr int64_t kLayers = 3;
constexpr DType kStack = DType::kFloat32;

std::vector<std::unique_ptr<Matrix>> make_layers(int64_t n) {
  std::vector<std::unique_ptr<Matrix>> layers;
  layers.push_back(std::make_unique<Matrix>(DType::kFloat32, n, 520, Layout::kContiguous));
  layers.push_back(std::make_unique<Matrix>(DType::kFloat64, n, 33, Layout::kTransposedGaps));
  layers.push_back(std::make_unique<Matrix>(DType::kFloat16, n, 130, Layout::kGaps));
  return layers;
}

bool same_matrices(const std::vector<std::unique_ptr<Matrix>>& a,
                   const std::vector<std::unique_ptr<Matrix>>& b) {
  for (size_t l = 0; l < a.size(); ++l) {
    if (!a[l]->same_bytes(*b[l])) return false;
  }
  return true;
}

}  // namespace

TrainingStep::TrainingStep(int64_t n)
    : n_(n),
      layers_(make_layers(n)),
      gradients_(make_layers(n)),
      raw_(kStack, kLayers, n),
      centered_(kStack, kLayers, n),
      coefficients_(kStack, kLayers, n),
      symmetric_(kStack, kLayers, n),
      values_(kLayers),
      degenerate_(kLayers) {
  for (size_t l = 0; l < layers_.size(); ++l) layers_[l]->randomize(l);
}

void TrainingStep::run(const cpu::KernelSet& kernels, int threads) {
  const std::vector<cpu::Pair> pairs = {{0, 1}, {1, 2}, {2, 0}};
  const std::vector<double> grad = {1, -1, 2};
  std::vector<cpu::LayerStats> stats(kLayers);
  const std::vector<MatrixView> views = views_of(layers_);
  const cpu::GramStack centered{centered_.data(), kStack, kLayers, n_};
  cpu::gram(views, Centering::kNone, {raw_.data(), kStack, kLayers, n_}, nullptr, kernels, threads);
  cpu::gram(views, Centering::kU, centered, stats.data(), kernels, threads);
  cpu::alignment(centered, stats.data(), pairs, values_.data(), degenerate_.data(), kernels,
                 threads);
  cpu::coefficients(centered, stats.data(), pairs, values_.data(), degenerate_.data(), grad.data(),
                    {0, 1, 2}, coefficients_.data(), kernels, threads);
  cpu::symmetrize(centered, Centering::kH, symmetric_.data(), kernels, threads);
  std::vector<cpu::ApplyProblem> problems;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const auto* a = static_cast<const float*>(coefficients_.data()) + int64_t(l) * n_ * n_;
    problems.push_back({a, layers_[l]->view(), gradients_[l]->view()});
  }
  cpu::apply(problems, kStack, true, kernels, threads);
}

bool TrainingStep::same_bytes(const TrainingStep& other) const {
  return raw_.same_bytes(other.raw_) && centered_.same_bytes(other.centered_) &&
         coefficients_.same_bytes(other.coefficients_) &&
         symmetric_.same_bytes(other.symmetric_) &&
         same_matrices(gradients_, other.gradients_) && values_ == other.values_ &&
         degenerate_ == other.degenerate_;
}
