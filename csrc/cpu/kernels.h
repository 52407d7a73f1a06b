// What an instruction set provides: a table of the loops that do the arithmetic.
//
// kernels_<name>.cpp instantiates the same templates (kernels_instance.h) for one instruction
// set; everything else in csrc/cpu is compiled once, for the baseline, and calls through here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/matrix_view.h"

namespace pyguide::cpu {

// A factor of a product, seen as rows x depth: the product of P and Q is P Q^T, summed over the
// depth. `shift` holds one number per depth index or per row of the part that is packed.
enum class ShiftAxis { kNone, kDepth, kRow };

struct Operand {
  MatrixView view;  // rows x depth
  ShiftAxis shift_axis;
};

// A rectangle of an operand.
struct Part {
  int64_t row, rows;
  int64_t depth, depths;
};

constexpr int64_t kStoreCols = 96;  // the most that `store` takes at a time

// T is the arithmetic type: float for float32 and 16-bit inputs, double for float64.
template <class T>
struct Kernels {
  // Packed operands are slivers of `sliver` rows, depth-major: packed[s][k][r]; the last sliver
  // is filled up with zero rows.
  int64_t sliver;

  // shift[c] = x0 + mean over at most 16 evenly spaced rows of (x - x0), for `cols` columns from
  // `col`. Constant columns get exactly their constant.
  void (*column_shift)(const MatrixView& x, int64_t col, int64_t cols, T* shift);

  // Converts to T, subtracts the shift and packs.
  void (*pack)(const Operand& operand, const Part& part, const T* shift, T* packed);

  // sums += P Q^T for packed P and Q; sums is row-major with leading dimension `ld`, a multiple
  // of the sliver. With `lower`, tiles wholly above the diagonal are skipped.
  void (*accumulate)(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                     bool lower, double* sums, int64_t ld);

  // out[row + i, col + j] = (P Q^T)_ij, rounded to out's type; at most kStoreCols columns.
  void (*store)(const T* p, const T* q, int64_t rows, int64_t cols, int64_t depths,
                const MatrixView& out, int64_t row, int64_t col);

  // Loops over n x n matrices; all sums are in double.
  //
  // out[j] = row[j] - (b_i + b[j]), rounded once; returns the squared norm of what was written.
  double (*center_sums)(const double* row, double b_i, const double* b, int64_t count, T* out);
  double (*center)(const T* row, double b_i, const double* b, int64_t count, T* out);
  double (*sum)(const T* x, int64_t count);
  double (*dot)(const T* x, const T* y, int64_t count);
  void (*add_scaled)(double scale, const T* x, double* y, int64_t count);

  // Multiply-adds on registers alone, `steps` for each sum of a tile; returns how many.
  // *sum is the factor, a little below 1, and then a result, so that nothing is optimised away.
  int64_t (*peak)(int64_t steps, T* sum);
};

struct KernelSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

template <class T>
const Kernels<T>& kernels_for(const KernelSet& set);
template <>
inline const Kernels<float>& kernels_for<float>(const KernelSet& set) {
  return set.f32;
}
template <>
inline const Kernels<double>& kernels_for<double>(const KernelSet& set) {
  return set.f64;
}

// Names of the instruction sets that are compiled in and that this CPU has, best first.
std::vector<std::string> instruction_sets();

// The named set, or the best one if the name is empty. Throws std::invalid_argument.
const KernelSet& kernel_set(const std::string& name);

}  // namespace pyguide::cpu
