// One call of every operation on a few layers, for the tests that compare whole runs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cases.h"
#include "cpu/ops.h"
#include "matrix.h"

class TrainingStep {
 public:
  explicit TrainingStep(int64_t n);

  // Computes everything from scratch.
  void run(const pyguide::cpu::KernelSet& kernels, int threads);

  bool same_bytes(const TrainingStep& other) const;

 private:
  int64_t n_;
  std::vector<std::unique_ptr<Matrix>> layers_, gradients_;
  Stack raw_, centered_, coefficients_, symmetric_;
  std::vector<double> values_;
  std::vector<uint8_t> degenerate_;
};
