// The ceiling of the benchmarks: the rate of multiply-adds when nothing is loaded or stored.
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace pyguide::cpu {

double fma_peak(int64_t steps, const KernelSet& kernels, int threads) {
  std::vector<double> flop(threads);
  parallel(threads, [&](int t) {
    volatile float factor = 0.999f;
    float sum = factor;
    flop[t] = 2 * double(kernels.f32.peak(steps, &sum));
    factor = sum;
  });
  double total = 0;
  for (double f : flop) total += f;
  return total;
}

}  // namespace pyguide::cpu
