// pyguide._native: raw pointers, sizes and strides in; errors out. Python owns every tensor.
#include <string>

#include "bindings/modules.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of pyguide; csrc/cpu/ops.h says what each call computes.";
  m.def("compiler", &compiler);
  pyguide::bindings::add_cpu_functions(m);
  pybind11::module_ cuda = m.def_submodule(
      "cuda", "The CUDA kernels, in a library of their own; see csrc/cuda/api.h.");
  pyguide::bindings::add_cuda_functions(cuda);
}
