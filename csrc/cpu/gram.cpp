// Gram matrices of many ragged layers in one parallel pass, lower triangle only.
#include <algorithm>
#include <cstdint>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/partition.h"
#include "core/rounding.h"
#include "cpu/centering.h"
#include "cpu/kernels.h"
#include "cpu/ops.h"

namespace pyguide::cpu {
namespace {

constexpr int64_t kBlock = 256;  // results of a block: 256 x 256, summed in double
constexpr int64_t kPanel = 512;  // features summed in T before they are added to the double sums
// Packing one element costs about as much as this many multiply-adds: balances the threads.
constexpr double kPackCost = 16;

struct Block {
  int64_t layer;
  int64_t row, rows;
  int64_t col, cols;
  bool diagonal() const { return row == col; }
};

int64_t panels(const MatrixView& x) { return ceil_div(x.cols, kPanel); }

std::vector<Block> blocks_of(const std::vector<MatrixView>& layers, int64_t n) {
  std::vector<Block> blocks;
  for (int64_t l = 0; l < int64_t(layers.size()); ++l) {
    for (int64_t i = 0; i < n; i += kBlock) {
      for (int64_t j = 0; j <= i; j += kBlock) {
        blocks.push_back({l, i, std::min(kBlock, n - i), j, std::min(kBlock, n - j)});
      }
    }
  }
  return blocks;
}

Partition partition_of(const std::vector<Block>& blocks, const std::vector<MatrixView>& layers) {
  std::vector<int64_t> units;
  std::vector<double> costs;
  for (const Block& block : blocks) {
    const MatrixView& x = layers[block.layer];
    const double products = double(block.rows) * double(block.cols) * (block.diagonal() ? 0.5 : 1);
    const double packed = double(block.rows + (block.diagonal() ? 0 : block.cols));
    units.push_back(panels(x));
    costs.push_back((products + kPackCost * packed) * double(std::min(kPanel, x.cols)));
  }
  return Partition(std::move(units), std::move(costs));
}

// Where one thread packs and sums. A thread shares at most its first and its last block with
// other threads, so two sets of sums hold everything until all threads are done.
class Workspace {
 public:
  explicit Workspace(int64_t n, int64_t max_sliver)
      : side_(round_up(std::min(n, kBlock), max_sliver)),
        packed_(2 * side_ * kPanel + kPanel),
        sums_(2 * side_ * side_) {}

  template <class T>
  T* shift() const {
    return reinterpret_cast<T*>(packed_.get());
  }
  template <class T>
  T* packed(int which) const {
    return reinterpret_cast<T*>(packed_.get() + kPanel + which * side_ * kPanel);
  }
  double* sums(int which) const { return sums_.get() + which * side_ * side_; }
  int64_t side() const { return side_; }

 private:
  int64_t side_;
  Buffer<double> packed_;  // large enough for either arithmetic type
  Buffer<double> sums_;
};

template <class T>
void sum_block(const MatrixView& x, const Block& block, int64_t first_panel, int64_t last_panel,
               bool shifted, const Workspace& workspace, double* sums,
               const Kernels<T>& kernels) {
  const int64_t ld = round_up(block.cols, kernels.sliver);
  std::fill(sums, sums + round_up(block.rows, kernels.sliver) * ld, 0.0);
  const Operand operand{x, shifted ? ShiftAxis::kDepth : ShiftAxis::kNone};
  T* shift = workspace.shift<T>();
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t col = panel * kPanel;
    const int64_t cols = std::min(kPanel, x.cols - col);
    if (shifted) kernels.column_shift(x, col, cols, shift);
    T* rows = workspace.packed<T>(0);
    kernels.pack(operand, {block.row, block.rows, col, cols}, shift, rows);
    T* columns = rows;
    if (!block.diagonal()) {
      columns = workspace.packed<T>(1);
      kernels.pack(operand, {block.col, block.cols, col, cols}, shift, columns);
    }
    kernels.accumulate(rows, columns, block.rows, block.cols, cols, block.diagonal(), sums, ld);
  }
}

template <class Out>
void write_row(const double* sums, const Block& block, int64_t i, Out* gram, int64_t n) {
  const int64_t count = block.diagonal() ? i + 1 : block.cols;
  Out* to = gram + (block.row + i) * n + block.col;
  for (int64_t j = 0; j < count; ++j) to[j] = Out(sums[j]);
}

// Copies the lower triangle to the upper one, square by square so that both stay in cache.
template <class T>
void mirror(T* k, int64_t n, int threads) {
  constexpr int64_t kSquare = 32;
  parallel_for(threads, ceil_div(n, kSquare), [&](int64_t square_row) {
    const int64_t i0 = square_row * kSquare, i1 = std::min(n, i0 + kSquare);
    for (int64_t j0 = 0; j0 < i1; j0 += kSquare) {
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t j1 = std::min(i, j0 + kSquare);
        for (int64_t j = j0; j < j1; ++j) k[j * n + i] = k[i * n + j];
      }
    }
  });
}

template <class Out>
void gram_as(const std::vector<MatrixView>& layers, Centering centering, const GramStack& grams,
             LayerStats* stats, const KernelSet& set, int threads) {
  const int64_t n = grams.n;
  Out* out = static_cast<Out*>(grams.data);
  const std::vector<Block> blocks = blocks_of(layers, n);
  const Partition partition = partition_of(blocks, layers);
  threads = threads_for(partition.cost(), threads);
  const int64_t max_sliver = std::max(set.single.sliver, set.twice.sliver);
  std::vector<Workspace> workspaces;
  for (int t = 0; t < threads; ++t) workspaces.emplace_back(n, max_sliver);

  auto sliver = [&](const Block& block) {
    return layers[block.layer].dtype == DType::kFloat64 ? set.twice.sliver : set.single.sliver;
  };
  parallel(threads, [&](int t) {
    for (int64_t b = 0; b < partition.items(); ++b) {
      const int64_t first = partition.first_unit(b, t, threads);
      const int64_t last = partition.first_unit(b, t + 1, threads);
      if (first == last) continue;
      const Block& block = blocks[b];
      const MatrixView& x = layers[block.layer];
      double* sums = workspaces[t].sums(first > 0 ? 0 : 1);
      const bool shifted = centering != Centering::kNone;
      if (x.dtype == DType::kFloat64) {
        sum_block(x, block, first, last, shifted, workspaces[t], sums, set.twice);
      } else {
        sum_block(x, block, first, last, shifted, workspaces[t], sums, set.single);
      }
      if (first > 0 || last < partition.units(b)) continue;  // shared: summed below
      const int64_t ld = round_up(block.cols, sliver(block));
      for (int64_t i = 0; i < block.rows; ++i) {
        write_row(sums + i * ld, block, i, out + block.layer * n * n, n);
      }
    }
  });

  // Blocks that several threads summed parts of, in the order of the threads.
  for (int64_t b = 0; b < partition.items(); ++b) {
    std::vector<double*> parts;
    for (int t = 0; t < threads; ++t) {
      const int64_t first = partition.first_unit(b, t, threads);
      if (first < partition.first_unit(b, t + 1, threads)) {
        parts.push_back(workspaces[t].sums(first > 0 ? 0 : 1));
      }
    }
    if (parts.size() < 2) continue;
    const Block& block = blocks[b];
    const int64_t ld = round_up(block.cols, sliver(block));
    parallel_for(threads, block.rows, [&](int64_t i) {
      for (size_t p = 1; p < parts.size(); ++p) {
        for (int64_t j = 0; j < block.cols; ++j) parts[0][i * ld + j] += parts[p][i * ld + j];
      }
      write_row(parts[0] + i * ld, block, i, out + block.layer * n * n, n);
    });
  }

  for_each_layer(grams.layers, threads, [&](int64_t l, int layer_threads) {
    Out* k = out + l * n * n;
    mirror(k, n, layer_threads);
    if (centering != Centering::kNone) {
      stats[l] = center_in_place(k, n, centering, kernels_for<Out>(set), layer_threads);
    }
  });
}

}  // namespace

void gram(const std::vector<MatrixView>& layers, Centering centering, const GramStack& grams,
          LayerStats* stats, const KernelSet& kernels, int threads) {
  if (grams.dtype == DType::kFloat64) {
    gram_as<double>(layers, centering, grams, stats, kernels, threads);
  } else {
    gram_as<float>(layers, centering, grams, stats, kernels, threads);
  }
}

}  // namespace pyguide::cpu
