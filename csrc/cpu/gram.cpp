// Gram matrices of many ragged layers in one parallel pass, lower triangle only.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

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
constexpr int64_t kSmallestPanel = 64;
// Packing one element costs about as much as this many multiply-adds (0.4 ns against 23 a ns, AVX2
// on Zen 1): balances the threads.
constexpr double kPackCost = 9;

struct Block {
  int64_t layer;
  int64_t row, rows;
  int64_t col, cols;
  bool diagonal() const { return row == col; }
};

// Tiny batches are multiplied in double: reading X is the cost there, and the debiased estimator
// loses the most to cancellation (1.6e-5 at n = 4 from float products, below 1e-7 from these).
constexpr int64_t kFewSamples = 16;

bool multiplies_in_double(const MatrixView& x) {
  return x.dtype == DType::kFloat64 || x.rows <= kFewSamples;
}

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

Partition partition_of(const std::vector<Block>& blocks, const std::vector<MatrixView>& layers,
                       int64_t panel) {
  std::vector<int64_t> units;
  std::vector<double> costs;
  for (const Block& block : blocks) {
    const MatrixView& x = layers[block.layer];
    const double products = double(block.rows) * double(block.cols) * (block.diagonal() ? 0.5 : 1);
    const double packed = double(block.rows + (block.diagonal() ? 0 : block.cols));
    units.push_back(ceil_div(x.cols, panel));
    costs.push_back((products + kPackCost * packed) * double(std::min(panel, x.cols)));
  }
  return Partition(std::move(units), std::move(costs));
}

// Narrower panels where there would be fewer of them than threads, and for layers that are narrow
// themselves: at 64 x 256 as fast, in half the workspace.
int64_t panel_for(const std::vector<Block>& blocks, const std::vector<MatrixView>& layers,
                  int threads) {
  int64_t panels = 0, cols = 0, widest = 0;
  for (const Block& block : blocks) {
    const MatrixView& x = layers[block.layer];
    panels += ceil_div(x.cols, kPanel);
    cols += x.cols;
    widest = std::max(widest, x.cols);
  }
  const int64_t panel = widest <= kPanel / 2 ? kPanel / 4 : kPanel;
  if (panels >= threads) return panel;
  return std::min(panel, round_up(ceil_div(cols, threads), kSmallestPanel));
}

// Where one thread packs, sums and centres: no larger than these layers need, since fresh memory
// costs small problems more time than their products. A thread shares at most its first and its
// last block with other threads, so two sets of sums hold everything until all threads are done.
struct Workspace {
  Workspace(const std::vector<MatrixView>& layers, int64_t n, int64_t panel, int64_t max_sliver)
      : side(round_up(std::min(n, kBlock), max_sliver)),
        shift(panel_size(layers, panel, 1)),
        rows(panel_size(layers, panel, side)),
        columns(n > kBlock ? panel_size(layers, panel, side) : 0),
        sums_of_two(2 * side * side),
        scratch(2 * side) {}

  double* sums(int which) const { return sums_of_two.get() + which * side * side; }

  // In floats, for `side` samples of a panel of any of the layers.
  static int64_t panel_size(const std::vector<MatrixView>& layers, int64_t panel, int64_t side) {
    int64_t size = 0;
    for (const MatrixView& x : layers) {
      const int64_t floats = multiplies_in_double(x) ? 2 : 1;
      size = std::max(size, side * std::min(panel, x.cols) * floats);
    }
    return size;
  }

  int64_t side;
  Buffer<float> shift, rows, columns;  // of doubles where the layer is multiplied in double
  Buffer<double> sums_of_two, scratch;
};

template <class T>
void sum_block(const MatrixView& x, const Block& block, int64_t first_col, int64_t last_col,
               int64_t panel, bool shifted, const Workspace& workspace, double* sums,
               const Kernels<T>& kernels) {
  const int64_t ld = round_up(block.cols, kernels.sliver);
  std::fill(sums, sums + round_up(block.rows, kernels.sliver) * ld, 0.0);
  const Operand operand{x, shifted ? ShiftAxis::kDepth : ShiftAxis::kNone};
  T* shift = workspace.shift.as<T>();
  for (int64_t col = first_col; col < std::min(last_col, x.cols); col += panel) {
    const int64_t cols = std::min(panel, x.cols - col);
    if (shifted) kernels.column_shift(x, col, cols, shift);
    T* rows = workspace.rows.as<T>();
    kernels.pack(operand, {block.row, block.rows, col, cols}, shift, rows);
    T* columns = rows;
    if (!block.diagonal()) {
      columns = workspace.columns.as<T>();
      kernels.pack(operand, {block.col, block.cols, col, cols}, shift, columns);
    }
    kernels.accumulate(rows, columns, block.rows, block.cols, cols, block.diagonal(), sums, ld);
  }
}

// Copies the lower triangle to the upper one, square by square so that both stay in cache.
template <class T>
void mirror(T* k, int64_t n, int64_t ld, int threads) {
  constexpr int64_t kSquare = 32;
  parallel_for(threads, ceil_div(n, kSquare), [&](int64_t square_row) {
    const int64_t i0 = square_row * kSquare, i1 = std::min(n, i0 + kSquare);
    for (int64_t j0 = 0; j0 < i1; j0 += kSquare) {
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t j1 = std::min(i, j0 + kSquare);
        for (int64_t j = j0; j < j1; ++j) k[j * ld + i] = k[i * ld + j];
      }
    }
  });
}

// The last steps of a Gram matrix, once the sums of a block are complete.
template <class Out>
class Finish {
 public:
  Finish(Centering centering, const GramStack& grams, LayerStats* stats, const KernelSet& kernels)
      : centering_(centering),
        n_(grams.n),
        grams_(static_cast<Out*>(grams.data)),
        stats_(stats),
        kernels_(kernels) {}

  // A block that is a whole layer is centred from its double sums and rounded once; others are
  // stored and centred by `layer` below.
  void block(const Block& block, double* sums, int64_t ld, double* scratch, int threads) const {
    Out* gram = grams_ + block.layer * n_ * n_;
    if (block.rows == n_ && centering_ != Centering::kNone) {
      mirror(sums, n_, ld, threads);
      stats_[block.layer] =
          center(sums, ld, gram, n_, centering_, scratch, kernels_, threads);
      return;
    }
    parallel_for(threads, block.rows, [&](int64_t i) {
      const int64_t count = block.diagonal() ? i + 1 : block.cols;
      Out* to = gram + (block.row + i) * n_ + block.col;
      for (int64_t j = 0; j < count; ++j) to[j] = Out(sums[i * ld + j]);
    });
  }

  // Once all blocks are stored.
  void layers(int64_t count, int threads) const {
    const bool centered = centering_ != Centering::kNone;
    if (n_ <= kBlock && centered) return;
    const Buffer<double> scratch(centered ? count * 2 * n_ : 0);
    for_each_layer(count, threads, [&](int64_t l, int layer_threads) {
      Out* gram = grams_ + l * n_ * n_;
      mirror(gram, n_, n_, layer_threads);
      if (centered) {
        stats_[l] = center(gram, n_, gram, n_, centering_, scratch.get() + l * 2 * n_, kernels_,
                           layer_threads);
      }
    });
  }

 private:
  Centering centering_;
  int64_t n_;
  Out* grams_;
  LayerStats* stats_;
  const KernelSet& kernels_;
};

template <class Out>
void gram_as(const std::vector<MatrixView>& layers, Centering centering, const GramStack& grams,
             LayerStats* stats, const KernelSet& set, int threads) {
  const std::vector<Block> blocks = blocks_of(layers, grams.n);
  threads = threads_for(partition_of(blocks, layers, kPanel).cost(), threads);
  const int64_t panel = panel_for(blocks, layers, threads);
  const Partition partition = partition_of(blocks, layers, panel);
  const int64_t max_sliver = std::max(set.f32.sliver, set.f64.sliver);
  std::vector<Workspace> workspaces;
  for (int t = 0; t < threads; ++t) workspaces.emplace_back(layers, grams.n, panel, max_sliver);
  const Finish<Out> finish(centering, grams, stats, set);

  auto leading_dimension = [&](const Block& block) {
    const bool wide = multiplies_in_double(layers[block.layer]);
    return round_up(block.cols, wide ? set.f64.sliver : set.f32.sliver);
  };
  parallel(threads, [&](int t) {
    const Workspace& workspace = workspaces[t];
    for (int64_t b = 0; b < partition.items(); ++b) {
      const int64_t first = partition.first_unit(b, t, threads);
      const int64_t last = partition.first_unit(b, t + 1, threads);
      if (first == last) continue;
      const Block& block = blocks[b];
      const MatrixView& x = layers[block.layer];
      double* sums = workspace.sums(first > 0 ? 0 : 1);
      const bool shifted = centering != Centering::kNone;
      if (multiplies_in_double(x)) {
        sum_block(x, block, first * panel, last * panel, panel, shifted, workspace, sums, set.f64);
      } else {
        sum_block(x, block, first * panel, last * panel, panel, shifted, workspace, sums, set.f32);
      }
      if (first > 0 || last < partition.units(b)) continue;  // shared: summed below
      finish.block(block, sums, leading_dimension(block), workspace.scratch.get(), 1);
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
    const int64_t ld = leading_dimension(block);
    parallel_for(threads, block.rows, [&](int64_t i) {
      for (size_t p = 1; p < parts.size(); ++p) {
        for (int64_t j = 0; j < block.cols; ++j) parts[0][i * ld + j] += parts[p][i * ld + j];
      }
    });
    finish.block(block, parts[0], ld, workspaces[0].scratch.get(), threads);
  }
  finish.layers(grams.layers, threads);
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
