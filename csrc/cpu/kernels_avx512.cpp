// AVX-512: 16 floats or 8 doubles a vector, 32 registers: 24 sums, 3 columns, 1 broadcast row.
#include "cpu/kernels_instance.h"

namespace pyguide::cpu {

extern const KernelSet kAvx512Kernels;
const KernelSet kAvx512Kernels = {"avx512", Instance<float, 16, 8, 3>::table(),
                                  Instance<double, 8, 8, 3>::table()};

}  // namespace pyguide::cpu
