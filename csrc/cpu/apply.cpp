// dX = A (X - s) for many ragged layers in one parallel pass, written in X's own dtype.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/partition.h"
#include "core/rounding.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace pyguide::cpu {
namespace {

constexpr int64_t kRows = 256;   // samples of a block
constexpr int64_t kDepth = 512;  // samples summed in T before they are added to double sums

// Features of a block: narrow while the coefficients stay packed from block to block, wide
// where they are packed again each time.
int64_t panel_cols(int64_t n) { return n <= kDepth ? kStoreCols : 256; }

struct Block {
  const ApplyProblem* problem;
  int64_t row, rows;
};

// No larger than these problems need. Sizes are in floats.
struct Workspace {
  Workspace(const std::vector<ApplyProblem>& problems, int64_t n, int64_t max_sliver)
      : cols(widest_panel(problems, n)),
        floats(any_in_double(problems) ? 2 : 1),
        shift(cols * floats),
        coefficients(round_up(std::min(n, kRows), max_sliver) * std::min(n, kDepth) * floats),
        features(round_up(cols, max_sliver) * std::min(n, kDepth) * floats),
        sums(n <= kDepth ? 0 : round_up(kRows, max_sliver) * round_up(cols, max_sliver)) {}

  static int64_t widest_panel(const std::vector<ApplyProblem>& problems, int64_t n) {
    int64_t cols = 0;
    for (const ApplyProblem& problem : problems) cols = std::max(cols, problem.x.cols);
    return std::min(cols, panel_cols(n));
  }
  static bool any_in_double(const std::vector<ApplyProblem>& problems) {
    return std::any_of(problems.begin(), problems.end(), [](const ApplyProblem& problem) {
      return problem.x.dtype == DType::kFloat64;
    });
  }

  int64_t cols, floats;
  Buffer<float> shift, coefficients, features;  // of doubles where x is float64
  Buffer<double> sums;
};

template <class Out>
void write_sums(const double* sums, int64_t ld, const Block& block, int64_t col, int64_t cols) {
  const MatrixView& out = block.problem->out;
  for (int64_t i = 0; i < block.rows; ++i) {
    Out* to = static_cast<Out*>(out.data) + (block.row + i) * out.row_stride +
              col * out.col_stride;
    for (int64_t j = 0; j < cols; ++j) narrow(sums[i * ld + j], to[j * out.col_stride]);
  }
}

void write_sums(const double* sums, int64_t ld, const Block& block, int64_t col, int64_t cols) {
  switch (block.problem->out.dtype) {
    case DType::kFloat64:
      return write_sums<double>(sums, ld, block, col, cols);
    case DType::kFloat32:
      return write_sums<float>(sums, ld, block, col, cols);
    case DType::kBFloat16:
      return write_sums<bfloat16>(sums, ld, block, col, cols);
    case DType::kFloat16:
      return write_sums<float16>(sums, ld, block, col, cols);
  }
}

// Panels [first, last) of one block.
template <class T>
void apply_block(const Block& block, DType coefficient_dtype, bool shifted, int64_t first,
                 int64_t last, const Workspace& workspace, const Kernels<T>& kernels) {
  const MatrixView& x = block.problem->x;
  const int64_t n = x.rows;
  const MatrixView a{const_cast<void*>(block.problem->coefficients), coefficient_dtype, n, n, n, 1};
  const MatrixView features{x.data, x.dtype, x.cols, n, x.col_stride, x.row_stride};
  const Operand left{a, ShiftAxis::kNone};
  const Operand right{features, shifted ? ShiftAxis::kRow : ShiftAxis::kNone};
  T* packed_a = workspace.coefficients.as<T>();
  T* packed_x = workspace.features.as<T>();
  T* shift = workspace.shift.as<T>();
  const int64_t panel = panel_cols(n);
  const bool one_pass = n <= kDepth;
  if (one_pass) kernels.pack(left, {block.row, block.rows, 0, n}, nullptr, packed_a);
  for (int64_t col = first * panel; col < std::min(x.cols, last * panel); col += panel) {
    const int64_t cols = std::min(panel, x.cols - col);
    if (shifted) kernels.column_shift(x, col, cols, shift);
    if (one_pass) {
      kernels.pack(right, {col, cols, 0, n}, shift, packed_x);
      kernels.store(packed_a, packed_x, block.rows, cols, n, block.problem->out, block.row, col);
      continue;
    }
    const int64_t ld = round_up(cols, kernels.sliver);
    double* sums = workspace.sums.get();
    std::fill(sums, sums + round_up(block.rows, kernels.sliver) * ld, 0.0);
    for (int64_t k = 0; k < n; k += kDepth) {
      const int64_t depths = std::min(kDepth, n - k);
      kernels.pack(left, {block.row, block.rows, k, depths}, nullptr, packed_a);
      kernels.pack(right, {col, cols, k, depths}, shift, packed_x);
      kernels.accumulate(packed_a, packed_x, block.rows, cols, depths, false, sums, ld);
    }
    write_sums(sums, ld, block, col, cols);
  }
}

}  // namespace

void apply(const std::vector<ApplyProblem>& problems, DType coefficient_dtype, bool shifted,
           const KernelSet& set, int threads) {
  if (problems.empty()) return;
  const int64_t n = problems.front().x.rows;
  std::vector<Block> blocks;
  std::vector<int64_t> units;
  std::vector<double> costs;
  for (const ApplyProblem& problem : problems) {
    for (int64_t i = 0; i < n; i += kRows) {
      blocks.push_back({&problem, i, std::min(kRows, n - i)});
      units.push_back(ceil_div(problem.x.cols, panel_cols(n)));
      costs.push_back(double(std::min(kRows, n - i)) * double(n) *
                      double(std::min(panel_cols(n), problem.x.cols)));
    }
  }
  const Partition partition(std::move(units), std::move(costs));
  threads = threads_for(partition.cost(), threads);
  const int64_t max_sliver = std::max(set.f32.sliver, set.f64.sliver);
  std::vector<Workspace> workspaces;
  for (int t = 0; t < threads; ++t) workspaces.emplace_back(problems, n, max_sliver);

  parallel(threads, [&](int t) {
    for (int64_t b = 0; b < partition.items(); ++b) {
      const int64_t first = partition.first_unit(b, t, threads);
      const int64_t last = partition.first_unit(b, t + 1, threads);
      if (first == last) continue;
      if (blocks[b].problem->x.dtype == DType::kFloat64) {
        apply_block(blocks[b], coefficient_dtype, shifted, first, last, workspaces[t], set.f64);
      } else {
        apply_block(blocks[b], coefficient_dtype, shifted, first, last, workspaces[t], set.f32);
      }
    }
  });
}

}  // namespace pyguide::cpu
