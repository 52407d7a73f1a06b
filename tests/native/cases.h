// Which shapes, dtypes, layouts, thread counts and instruction sets the kernels are tested with.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "matrix.h"
#include "wide_instance.h"

// Around the sizes of a sliver (8 to 48), of the few samples that are multiplied in double (16),
// of a block (256) and of a panel (512).
constexpr int64_t kSamples[] = {2,  3,  4,  5,  7,   15,  16,  17,  23,
                                24, 25, 48, 49, 255, 256, 257, 511, 513};
constexpr int kThreads[] = {1, 2, 3, 7};

inline std::vector<int64_t> widths_for(int64_t n) {
  if (n < 100) return {1, 2, 7, 16, 23, 64, 65, 511, 512, 513, 1100};
  if (n == 257) return {1, 17, 600};
  return n < 300 ? std::vector<int64_t>{1, 17, 97, 300} : std::vector<int64_t>{1, 17, 97};
}

// Layers, or outputs for them, of every width and dtype with n samples; the layouts take turns.
inline std::vector<std::unique_ptr<Matrix>> layers_for(int64_t n,
                                                       const std::vector<pyguide::DType>& dtypes,
                                                       bool outputs = false) {
  std::vector<std::unique_ptr<Matrix>> layers;
  int turn = int(n);
  for (int64_t d : widths_for(n)) {
    for (pyguide::DType dtype : dtypes) {
      // 7 and 4 have no common factor: every input layout meets every output layout.
      const auto layout = static_cast<Layout>(turn++ % (outputs ? 4 : 7));
      layers.push_back(std::make_unique<Matrix>(dtype, n, d, layout));
      if (!outputs) layers.back()->randomize(uint64_t(turn));
    }
  }
  return layers;
}

inline std::vector<pyguide::MatrixView> views_of(
    const std::vector<std::unique_ptr<Matrix>>& matrices) {
  std::vector<pyguide::MatrixView> views;
  for (const auto& matrix : matrices) views.push_back(matrix->view());
  return views;
}

// Calls body(kernels, threads) for every thread count with the best instruction set, for some with
// the others, and once for the 16-wide instance.
template <class Body>
void for_each_configuration(Body&& body) {
  const std::vector<std::string> names = pyguide::cpu::instruction_sets();
  for (const std::string& name : names) {
    for (int threads : kThreads) {
      if (name != names.front() && threads != 1 && threads != 3) continue;
      body(pyguide::cpu::kernel_set(name), threads);
    }
  }
  body(kWideKernels, 2);
}
