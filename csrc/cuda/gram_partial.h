// X X^T of many ragged layers: each block multiplies one tile of one matrix over a range of its
// features.
#pragma once

#include <type_traits>

#include "cuda/shift.h"
#include "cuda/tile.h"
#include "cuda/work.h"

namespace pyguide::cuda {

struct GramPartialParams {
  struct Layer {
    Source x;
    int32_t first_item;  // of the launch; a token has triangle(tiles) * splits items
    int32_t splits;      // ranges of features
  };
  int64_t n;
  char* partial;     // kSide x kSide sums an item
  double* row_sums;  // 2 kSide an item: of the tile's rows, and of its columns off the diagonal
  int32_t layers;
  int32_t tiles;  // rows of tiles
  bool shifted;
  Layer layer[kMaxLayers];
};

// Kind: csrc/cuda/arithmetic.h. A block of a diagonal tile loads one panel, so that up to kSide
// samples X is read from memory once.
template <class Kind, int kSide>
struct GramPartial {
  using Params = GramPartialParams;
  using Element = typename Kind::Element;
  using Sum = typename Kind::Sum;
  using Results = Tile<Sum, kSide>;
  using Slab = RowSlab<kSide>;

  static constexpr int kThreads = Results::kThreads;
  // The sums and their totals take 128 registers a thread at 128 x 128.
  static constexpr int kBlocksPerSm = kSide == 128 ? 1 : sizeof(Sum) == 8 ? 2 : 3;
  static constexpr int kFeatures = 128 / int(sizeof(Element));  // of a slab
  // Single-precision sums run over so many features before they are added to the totals: the tensor
  // cores truncate.
  static constexpr int kChain = 512 / kFeatures;
  static constexpr int kSlabs = 6;

  struct Shared {
    union {
      alignas(128) char slab[kSlabs][Slab::kBytes];
      Sum tile[kSide * Results::kStride];
    };
    alignas(16) char shift[2][128];
  };

  struct Item {
    const char* matrix;
    const Source& x;
    Square tile;
    int first_slab, last_slab;
    PYGUIDE_DEVICE bool diagonal() const { return tile.row == tile.col; }
  };

  PYGUIDE_DEVICE static Item item_of(const Params& p, int index) {
    const auto& layer = p.layer[layer_of(p.layer, p.layers, index)];
    // Tiles of one range are neighbours: what one has read, the next finds in the L2 cache.
    const int tiles = p.tiles * (p.tiles + 1) / 2;
    const int local = index - layer.first_item;
    const int split = local / tiles % layer.splits;
    const int64_t token = local / tiles / layer.splits;
    const int64_t slabs = (layer.x.cols + kFeatures - 1) / kFeatures;
    return {layer.x.data + token * layer.x.token_stride * int64_t(sizeof(Element)),
            layer.x,
            square_of(local % tiles),
            int(slabs * split / layer.splits),
            int(slabs * (split + 1) / layer.splits)};
  }

  PYGUIDE_DEVICE static void multiply_slab(const char* left, const char* right, const char* shift,
                                           typename Results::Sums& sums) {
    PYGUIDE_UNROLL
    for (int depth = 0; depth < kFeatures; depth += Kind::kDepth) {
      typename Kind::Rows b[Results::kColBlocks];
      PYGUIDE_UNROLL
      for (int j = 0; j < Results::kColBlocks; ++j) {
        b[j] = Kind::template rows<Side::kRight, Slab>(right, Results::first_col() + 16 * j, depth,
                                                       shift);
      }
      PYGUIDE_UNROLL
      for (int i = 0; i < Results::kRowBlocks; ++i) {
        const auto a = Kind::template rows<Side::kLeft, Slab>(
            left, Results::first_row() + 16 * i, depth, shift);
        PYGUIDE_UNROLL
        for (int j = 0; j < Results::kColBlocks; ++j) Kind::multiply(sums[i][j], a, b[j]);
      }
    }
  }

  // Double sums need no chains: they are the totals.
  static constexpr bool kInDouble = std::is_same_v<Sum, double>;

  // kPanels: 1 on the diagonal, where both operands are the same rows, else 2.
  template <int kPanels>
  PYGUIDE_DEVICE static void multiply(const Params& p, const Item& item, Shared& shared,
                                      typename Results::Sums& totals) {
    constexpr int kStages = kSlabs / kPanels;
    const int count = item.last_slab - item.first_slab;
    auto stage = [&](int s) { return shared.slab[s % kStages * kPanels]; };
    auto load = [&](int s) {
      if (s < count) {
        const int64_t col = int64_t(item.first_slab + s) * kFeatures;
        load_slab<Element, Slab, kThreads>(stage(s), item.x, item.matrix, p.n,
                                           int64_t(item.tile.row) * kSide, col);
        if constexpr (kPanels == 2) {
          load_slab<Element, Slab, kThreads>(stage(s) + Slab::kBytes, item.x, item.matrix, p.n,
                                             int64_t(item.tile.col) * kSide, col);
        }
      }
      ptx::commit_copies();  // an empty group too: the waits count groups
    };
    auto read_shift = [&](int s) {
      return Shift<Element, kFeatures, kThreads>(
          item.x, item.matrix, p.n, int64_t(item.first_slab + s) * kFeatures, p.shifted);
    };
    auto shift_of = [&](int s) { return reinterpret_cast<Element*>(shared.shift[s % 2]); };

    typename Results::Sums chain;
    Results::clear(chain);
    auto& sums = kInDouble ? totals : chain;
    for (int s = 0; s < kStages - 1; ++s) load(s);
    read_shift(0).write(shift_of(0));
    for (int s = 0; s < count; ++s) {
      ptx::wait_for_copies<kStages - 2>("gram: slab landed");
      // Everybody's copies of this slab and its shift are there, and nobody reads the one before.
      ptx::block_barrier("gram: slab complete");
      load(s + kStages - 1);
      const auto next = read_shift(s + 1);
      if (kPanels == 2 || !Results::above_diagonal()) {
        multiply_slab(stage(s), stage(s) + (kPanels - 1) * Slab::kBytes, shared.shift[s % 2], sums);
      }
      next.write(shift_of(s + 1));
      if (!kInDouble && (s + 1) % kChain == 0) Results::drain(sums, totals);
    }
    if (!kInDouble) Results::drain(sums, totals);
    ptx::block_barrier("gram: slabs free");
  }

  // Sums of the tile's valid entries, in double. A diagonal tile is its lower triangle mirrored.
  PYGUIDE_DEVICE static double row_sum(const Sum* tile, int row, int cols, bool diagonal) {
    double sum = 0;
    for (int c = 0; c < cols; ++c) {
      const bool upper = diagonal && c > row;
      sum += upper ? tile[c * Results::kStride + row] : tile[row * Results::kStride + c];
    }
    return sum;
  }

  PYGUIDE_DEVICE static double col_sum(const Sum* tile, int col, int rows) {
    double sum = 0;
    for (int r = 0; r < rows; ++r) sum += tile[r * Results::kStride + col];
    return sum;
  }

  PYGUIDE_DEVICE static int valid(int64_t n, int tile) {
    const int64_t left = n - int64_t(tile) * kSide;
    return left < kSide ? int(left) : kSide;
  }

  PYGUIDE_DEVICE static void write(const Params& p, const Item& item, const Sum* tile) {
    const int64_t index = block_index();
    Sum* partial = reinterpret_cast<Sum*>(p.partial) + index * kSide * kSide;
    for (int e = thread_index(); e < kSide * kSide; e += kThreads) {
      partial[e] = tile[e / kSide * Results::kStride + e % kSide];
    }
    const int rows = valid(p.n, item.tile.row), cols = valid(p.n, item.tile.col);
    const int t = thread_index();
    double sum = 0;
    if (t < rows) sum = row_sum(tile, t, cols, item.diagonal());
    if (t >= kSide && t - kSide < cols && !item.diagonal()) sum = col_sum(tile, t - kSide, rows);
    p.row_sums[index * 2 * kSide + t] = sum;
  }

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    const Item item = item_of(p, int(block_index()));
    typename Results::Sums totals;
    Results::clear(totals);
    if (item.diagonal()) {
      multiply<1>(p, item, shared, totals);
    } else {
      multiply<2>(p, item, shared, totals);
    }
    Results::store(totals, shared.tile);
    ptx::block_barrier("gram: tile stored");
    write(p, item, shared.tile);
  }
};

}  // namespace pyguide::cuda
