// pyguide._native: the CPU kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/modules.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace py = pybind11;

namespace pyguide::bindings {
namespace {

// The matrices of all layers, token by token.
std::vector<MatrixView> matrices_of(const std::vector<MatrixBatch>& batches) {
  std::vector<MatrixView> views;
  for (const MatrixBatch& batch : batches) {
    // An absurd count fails here, before the loop. A call with many layers has one token each.
    if (batch.count > 1) views.reserve(views.size() + size_t(batch.count));
    for (int64_t i = 0; i < batch.count; ++i) views.push_back(batch[i]);
  }
  return views;
}

cpu::GramStack stack_from(int64_t address, const char* name, int dtype, int64_t layers,
                          int64_t n) {
  const DType type = dtype_from(dtype);
  void* data = pointer<void>(address);
  check_stack(data, name, type, layers, n, n);
  return {data, type, layers, n};
}

// The matrices of layers[...] in a stack that holds `tokens` of each layer.
std::vector<int64_t> tokens_of(const std::vector<int64_t>& layers, int64_t tokens) {
  std::vector<int64_t> matrices;
  matrices.reserve(layers.size() * size_t(tokens));
  for (int64_t layer : layers) {
    for (int64_t t = 0; t < tokens; ++t) matrices.push_back(layer * tokens + t);
  }
  return matrices;
}

// Pairs of layers, token by token.
std::vector<cpu::Pair> pairs_from(const std::vector<int64_t>& left,
                                  const std::vector<int64_t>& right, int64_t layers,
                                  int64_t tokens) {
  check_pairs(left, right, layers, tokens);
  const auto lefts = tokens_of(left, tokens), rights = tokens_of(right, tokens);
  std::vector<cpu::Pair> pairs;
  for (size_t p = 0; p < lefts.size(); ++p) pairs.push_back({lefts[p], rights[p]});
  return pairs;
}

void gram(const std::vector<ViewTuple>& layers, int centering, int64_t grams, int dtype, int64_t n,
          int64_t stats, int threads, const std::string& instruction_set) {
  check_threads(threads);
  const std::vector<MatrixView> views = matrices_of(batches_from(layers, n, check_layer));
  const cpu::GramStack stack = stack_from(grams, "grams", dtype, int64_t(views.size()), n);
  const Centering mode = centering_from(centering);
  require(mode != Centering::kU || n >= 4, "U-centring needs n >= 4");
  auto* layer_stats =
      mode == Centering::kNone ? nullptr : array<cpu::LayerStats>(stats, "stats");
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  cpu::gram(views, mode, stack, layer_stats, kernels, threads);
}

void alignment(int64_t grams, int dtype, int64_t layers, int64_t n, int64_t stats,
               const std::vector<int64_t>& left, const std::vector<int64_t>& right,
               int64_t tokens, int64_t values, int64_t degenerate, int threads,
               const std::string& instruction_set) {
  check_threads(threads);
  const cpu::GramStack stack = stack_from(grams, "grams", dtype, layers, n);
  const auto pairs = pairs_from(left, right, layers, tokens);
  const auto* layer_stats = array<const cpu::LayerStats>(stats, "stats");
  auto* out = array<double>(values, "values");
  auto* flags = array<uint8_t>(degenerate, "degenerate");
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  cpu::alignment(stack, layer_stats, pairs, out, flags, kernels, threads);
}

void coefficients(int64_t grams, int dtype, int64_t layers, int64_t n, int64_t stats,
                  const std::vector<int64_t>& left, const std::vector<int64_t>& right,
                  int64_t tokens, int64_t values, int64_t degenerate, int64_t grad,
                  const std::vector<int64_t>& wanted, int64_t out, int threads,
                  const std::string& instruction_set) {
  check_threads(threads);
  const cpu::GramStack stack = stack_from(grams, "grams", dtype, layers, n);
  const auto pairs = pairs_from(left, right, layers, tokens);
  check_indices(wanted, layers / tokens, "a wanted layer is out of range");
  if (wanted.empty()) return;
  const std::vector<int64_t> matrices = tokens_of(wanted, tokens);
  const auto* layer_stats = array<const cpu::LayerStats>(stats, "stats");
  const auto* cka = array<const double>(values, "values");
  const auto* flags = array<const uint8_t>(degenerate, "degenerate");
  const auto* upstream = array<const double>(grad, "grad");
  const auto to = stack_from(out, "out", dtype, int64_t(matrices.size()), n);
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  cpu::coefficients(stack, layer_stats, pairs, cka, flags, upstream, matrices, to.data, kernels,
                    threads);
}

void symmetrize(int64_t grads, int dtype, int64_t layers, int64_t n, bool center, int64_t out,
                int threads, const std::string& instruction_set) {
  check_threads(threads);
  const cpu::GramStack stack = stack_from(grads, "grads", dtype, layers, n);
  const auto to = stack_from(out, "out", dtype, layers, n);
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  cpu::symmetrize(stack, center ? Centering::kH : Centering::kNone, to.data, kernels, threads);
}

void apply(int64_t coefficients, int dtype, int64_t n, const std::vector<ViewTuple>& layers,
           const std::vector<ViewTuple>& outs, bool shifted, int threads,
           const std::string& instruction_set) {
  check_threads(threads);
  const auto batches = batches_from(layers, n, check_layer);
  const auto out_batches = batches_from(outs, n, check_output);
  check_matched(batches, out_batches);
  if (batches.empty()) return;
  const auto xs = matrices_of(batches), to = matrices_of(out_batches);
  const auto stack = stack_from(coefficients, "coefficients", dtype, int64_t(xs.size()), n);
  std::vector<cpu::ApplyProblem> problems;
  for (size_t l = 0; l < xs.size(); ++l) {
    const auto* a =
        static_cast<const char*>(stack.data) + int64_t(l) * n * n * size_of(stack.dtype);
    problems.push_back({a, xs[l], to[l]});
  }
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  cpu::apply(problems, stack.dtype, shifted, kernels, threads);
}

double fma_peak(int64_t steps, int threads, const std::string& instruction_set) {
  check_threads(threads);
  require(steps >= 1 && steps <= int64_t(1) << 40, "steps must be between 1 and 2^40");
  const cpu::KernelSet& kernels = cpu::kernel_set(instruction_set);
  py::gil_scoped_release release;
  return cpu::fma_peak(steps, kernels, threads);
}

}  // namespace

void add_cpu_functions(py::module_& m) {
  m.def("instruction_sets", &cpu::instruction_sets,
        "Instruction sets that are compiled in and supported by this CPU, best first.");
  const auto isa = py::arg("instruction_set") = "";
  m.def("gram", &gram, py::arg("layers"), py::arg("centering"), py::arg("grams"),
        py::arg("dtype"), py::arg("n"), py::arg("stats"), py::arg("threads"), isa);
  m.def("alignment", &alignment, py::arg("grams"), py::arg("dtype"), py::arg("layers"),
        py::arg("n"), py::arg("stats"), py::arg("left"), py::arg("right"), py::arg("tokens"),
        py::arg("values"), py::arg("degenerate"), py::arg("threads"), isa);
  m.def("coefficients", &coefficients, py::arg("grams"), py::arg("dtype"), py::arg("layers"),
        py::arg("n"), py::arg("stats"), py::arg("left"), py::arg("right"), py::arg("tokens"),
        py::arg("values"), py::arg("degenerate"), py::arg("grad"), py::arg("wanted"),
        py::arg("out"), py::arg("threads"), isa);
  m.def("symmetrize", &symmetrize, py::arg("grads"), py::arg("dtype"), py::arg("layers"),
        py::arg("n"), py::arg("center"), py::arg("out"), py::arg("threads"), isa);
  m.def("apply", &apply, py::arg("coefficients"), py::arg("dtype"), py::arg("n"),
        py::arg("layers"), py::arg("outs"), py::arg("shifted"), py::arg("threads"), isa);
  m.def("fma_peak", &fma_peak, py::arg("steps"), py::arg("threads"), isa);
}

}  // namespace pyguide::bindings
