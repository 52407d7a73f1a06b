// pyguide._native.cuda: the CUDA kernels, through the table of functions in csrc/cuda/api.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/cuda_library.h"
#include "bindings/modules.h"

namespace py = pybind11;

namespace pyguide::bindings {
namespace {

using cuda::Pairs;
using cuda::Precision;
using cuda::Stack;
using cuda::Target;
using cuda::Workspace;

// What cp.async and vector loads of the kernels' own arrays need; torch's allocator gives 512.
constexpr int64_t kWorkspaceAlignment = 16;

void throw_if(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

Precision precision_from(int code) {
  require(code >= 0 && code <= 2, "precision code must be 0, 1 or 2");
  return static_cast<Precision>(code);
}

void check_device(int device) { require(device >= 0, "device must not be negative"); }

Target target_from(int device, int64_t stream) {
  check_device(device);
  return {device, pointer<void>(stream)};
}

Stack stack_from(int64_t address, const char* name, int dtype, int64_t matrices, int64_t n,
                 int64_t row_stride) {
  const DType type = dtype_from(dtype);
  void* data = pointer<void>(address);
  check_stack(data, name, type, matrices, n, row_stride);
  return {data, type, matrices, n, row_stride};
}

Workspace workspace_from(int64_t address, int64_t bytes) {
  require(bytes >= 0, "workspace_bytes must not be negative");
  void* data = pointer<void>(address);
  if (bytes > 0) check_array(data, "workspace", kWorkspaceAlignment);
  return {data, bytes};
}

Pairs pairs_from(const std::vector<int64_t>& left, const std::vector<int64_t>& right,
                 int64_t matrices, int64_t tokens) {
  check_pairs(left, right, matrices, tokens);
  return {left.data(), right.data(), int64_t(left.size()), tokens};
}

// How many matrices a stack of `layers` of so many tokens has.
int64_t matrices_in(size_t layers, int64_t tokens) {
  int64_t matrices = 0;
  require(!__builtin_mul_overflow(int64_t(layers), tokens, &matrices),
          "layers and tokens reach beyond the address space");
  return matrices;
}

int64_t matrices_in(const std::vector<MatrixBatch>& layers) {
  require(!layers.empty(), "a call needs at least one layer");
  return matrices_in(layers.size(), layers.front().count);
}

int64_t device_count() {
  const char* why = nullptr;
  const int count = cuda_library().device_count(&why);
  if (count < 0) throw std::runtime_error(why);
  return count;
}

// No kernel runs on less: they use cp.async, and mma of bf16, tf32 and float64.
constexpr int kMinCapability = 80;

int device_capability(int device) {
  check_device(device);
  int capability = 0;
  throw_if(cuda_library().device_capability(device, &capability));
  return capability;
}

// Returns the capability, and loads the kernels if they run there.
int open_device(int device) {
  const int capability = device_capability(device);
  if (capability < kMinCapability) return capability;
  const cuda::Api& library = cuda_library();
  py::gil_scoped_release release;
  throw_if(library.open_device(device));
  return capability;
}

int64_t stat_chunks(int64_t n) {
  require(n >= 1, "n must be positive");
  return cuda_library().stat_chunks(n);
}

int64_t gram_workspace(const std::vector<ViewTuple>& layers, int64_t n, int precision,
                       int device) {
  check_device(device);
  const auto batches = batches_from(layers, n, check_layer);
  matrices_in(batches);
  return cuda_library().gram_workspace(batches.data(), int64_t(batches.size()), n,
                                       precision_from(precision), device);
}

void gram(const std::vector<ViewTuple>& layers, int centering, int precision, int64_t grams,
          int dtype, int64_t n, int64_t stats, int64_t workspace, int64_t workspace_bytes,
          int device, int64_t stream) {
  const auto batches = batches_from(layers, n, check_layer);
  const Stack stack = stack_from(grams, "grams", dtype, matrices_in(batches), n, n);
  const Centering mode = centering_from(centering);
  require(mode != Centering::kU || n >= 4, "U-centring needs n >= 4");
  double* sums = mode == Centering::kNone ? nullptr : array<double>(stats, "stats");
  const Precision how = precision_from(precision);
  const Workspace space = workspace_from(workspace, workspace_bytes);
  const Target target = target_from(device, stream);
  const cuda::Api& library = cuda_library();
  py::gil_scoped_release release;
  throw_if(library.gram(batches.data(), int64_t(batches.size()), mode, how, stack, sums, space,
                        target));
}

int64_t alignment_workspace(int64_t pairs, int64_t tokens, int64_t n) {
  require(pairs >= 0, "pairs must not be negative");
  require(tokens >= 1, "tokens must be positive");
  require(n >= 1, "n must be positive");
  return cuda_library().alignment_workspace(pairs, tokens, n);
}

void alignment(int64_t grams, int dtype, int64_t matrices, int64_t n, int64_t stats,
               const std::vector<int64_t>& left, const std::vector<int64_t>& right,
               int64_t tokens, int64_t values, int64_t degenerate, int64_t workspace,
               int64_t workspace_bytes, int device, int64_t stream) {
  const Stack stack = stack_from(grams, "grams", dtype, matrices, n, n);
  const Pairs pairs = pairs_from(left, right, matrices, tokens);
  const auto* sums = array<const double>(stats, "stats");
  const Workspace space = workspace_from(workspace, workspace_bytes);
  const Target target = target_from(device, stream);
  if (pairs.count == 0) return;
  auto* out = array<double>(values, "values");
  auto* flags = array<uint8_t>(degenerate, "degenerate");
  const cuda::Api& library = cuda_library();
  py::gil_scoped_release release;
  throw_if(library.alignment(stack, sums, pairs, out, flags, space, target));
}

void coefficients(int64_t grams, int dtype, int64_t matrices, int64_t n, int64_t stats,
                  const std::vector<int64_t>& left, const std::vector<int64_t>& right,
                  int64_t tokens, int64_t values, int64_t degenerate, int64_t grad, int grad_dtype,
                  const std::vector<int64_t>& wanted, int64_t out, int64_t row_stride,
                  int64_t bounds, int device, int64_t stream) {
  const Stack stack = stack_from(grams, "grams", dtype, matrices, n, n);
  const Pairs pairs = pairs_from(left, right, matrices, tokens);
  check_indices(wanted, matrices / tokens, "a wanted layer is out of range");
  const auto* sums = array<const double>(stats, "stats");
  const auto* cka = array<const double>(values, "values");
  const auto* flags = array<const uint8_t>(degenerate, "degenerate");
  const DType upstream_dtype = dtype_from(grad_dtype);
  require(upstream_dtype == DType::kFloat64 || upstream_dtype == DType::kFloat32,
          "grad is float32 or float64");
  const auto* upstream = pointer<const void>(grad);
  check_array(upstream, "grad", size_of(upstream_dtype));
  const Target target = target_from(device, stream);
  if (wanted.empty()) return;
  const Stack to =
      stack_from(out, "out", dtype, matrices_in(wanted.size(), tokens), n, row_stride);
  auto* largest = array<double>(bounds, "bounds");
  const cuda::Api& library = cuda_library();
  py::gil_scoped_release release;
  throw_if(library.coefficients(stack, sums, pairs, cka, flags, upstream, upstream_dtype,
                                wanted.data(), int64_t(wanted.size()), to, largest, target));
}

void apply(int64_t coefficients, int dtype, int64_t n, int64_t row_stride, int64_t bounds,
           const std::vector<ViewTuple>& layers, const std::vector<ViewTuple>& outs, bool shifted,
           int precision, int device, int64_t stream) {
  const auto xs = batches_from(layers, n, check_layer);
  const auto to = batches_from(outs, n, check_output);
  check_matched(xs, to);
  if (xs.empty()) return;
  const Stack stack =
      stack_from(coefficients, "coefficients", dtype, matrices_in(xs), n, row_stride);
  const auto* largest = array<const double>(bounds, "bounds");
  const Precision how = precision_from(precision);
  const Target target = target_from(device, stream);
  const cuda::Api& library = cuda_library();
  py::gil_scoped_release release;
  throw_if(library.apply(stack, largest, xs.data(), to.data(), int64_t(xs.size()), shifted, how,
                         target));
}

}  // namespace

void add_cuda_functions(py::module_& m) {
  m.attr("not_built") = PYGUIDE_CUDA_MISSING;  // why, or empty
  m.attr("architectures") = PYGUIDE_CUDA_ARCHITECTURES;
  m.attr("min_capability") = kMinCapability;
  m.def("open", &open_cuda_library, py::arg("path"));
  m.def("device_count", &device_count);
  m.def("device_capability", &device_capability, py::arg("device"));
  m.def("open_device", &open_device, py::arg("device"));
  m.def("stat_chunks", &stat_chunks, py::arg("n"));
  m.def("gram_workspace", &gram_workspace, py::arg("layers"), py::arg("n"), py::arg("precision"),
        py::arg("device"));
  m.def("gram", &gram, py::arg("layers"), py::arg("centering"), py::arg("precision"),
        py::arg("grams"), py::arg("dtype"), py::arg("n"), py::arg("stats"), py::arg("workspace"),
        py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"));
  m.def("alignment_workspace", &alignment_workspace, py::arg("pairs"), py::arg("tokens"),
        py::arg("n"));
  m.def("alignment", &alignment, py::arg("grams"), py::arg("dtype"), py::arg("matrices"),
        py::arg("n"), py::arg("stats"), py::arg("left"), py::arg("right"), py::arg("tokens"),
        py::arg("values"), py::arg("degenerate"), py::arg("workspace"), py::arg("workspace_bytes"),
        py::arg("device"), py::arg("stream"));
  m.def("coefficients", &coefficients, py::arg("grams"), py::arg("dtype"), py::arg("matrices"),
        py::arg("n"), py::arg("stats"), py::arg("left"), py::arg("right"), py::arg("tokens"),
        py::arg("values"), py::arg("degenerate"), py::arg("grad"), py::arg("grad_dtype"),
        py::arg("wanted"), py::arg("out"), py::arg("row_stride"), py::arg("bounds"),
        py::arg("device"), py::arg("stream"));
  m.def("apply", &apply, py::arg("coefficients"), py::arg("dtype"), py::arg("n"),
        py::arg("row_stride"), py::arg("bounds"), py::arg("layers"), py::arg("outs"),
        py::arg("shifted"), py::arg("precision"), py::arg("device"), py::arg("stream"));
}

}  // namespace pyguide::bindings
