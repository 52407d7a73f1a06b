// 128-bit vectors, which every 64-bit CPU has (SSE2, NEON, ...).
#include "cpu/kernels_instance.h"

namespace pyguide::cpu {

extern const KernelSet kPortableKernels;
const KernelSet kPortableKernels = {"portable", Instance<float, 4, 4, 2>::table(),
                                    Instance<double, 2, 4, 2>::table()};

}  // namespace pyguide::cpu
