// AVX2 + FMA: 8 floats or 4 doubles a vector, 16 registers: 12 sums, 3 columns, 1 broadcast row.
#include "cpu/kernels_instance.h"

namespace pyguide::cpu {

extern const KernelSet kAvx2Kernels;
const KernelSet kAvx2Kernels = {"avx2", Instance<float, 8, 4, 3>::table(),
                                Instance<double, 4, 4, 3>::table()};

}  // namespace pyguide::cpu
