// The 16-wide instance of kernels_avx512.cpp from the baseline's instructions, so that its layout
// is tested on every CPU.
#include "wide_instance.h"

#include "cpu/kernels_instance.h"

const pyguide::cpu::KernelSet kWideKernels = {
    "wide", pyguide::cpu::Instance<float, 16, 8, 3>::table(),
    pyguide::cpu::Instance<double, 8, 8, 3>::table()};
