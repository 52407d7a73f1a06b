// The parts of the module pyguide._native.
#pragma once

#include <pybind11/pybind11.h>

namespace pyguide::bindings {

void add_cpu_functions(pybind11::module_& m);
void add_cuda_functions(pybind11::module_& m);

}  // namespace pyguide::bindings
