// dX = A (X - s) for many ragged layers, written in X's own type: each block computes kSide
// samples of kSide features. Blocks of the same features are neighbours, so that beyond kSide
// samples X comes from the L2 cache all but once.
#pragma once

#include <type_traits>

#include "cuda/apply_arithmetic.h"
#include "cuda/shift.h"
#include "cuda/tile.h"
#include "cuda/work.h"

namespace pyguide::cuda {

struct ApplyParams {
  struct Layer {
    Source x;
    char* out;
    int64_t out_row_stride, out_col_stride, out_token_stride;  // in elements
    int32_t first_item;  // of the launch; a token has row_tiles for every kSide features
    int32_t first_matrix;
  };
  Source coefficients;  // its tokens are the matrices
  const double* bounds;
  int64_t n;
  int32_t layers;
  int32_t row_tiles;
  bool shifted;
  Layer layer[kMaxLayers];
};

// kChained: whether more samples are summed than a chain of single-precision sums may hold.
template <class Kind, int kSide, bool kChained>
struct Apply {
  using Params = ApplyParams;
  using Element = typename Kind::Element;
  using Coefficient = typename Kind::Coefficient;
  using Sum = typename Kind::Sum;
  using Results = Tile<Sum, kSide>;

  static constexpr int kThreads = Results::kThreads;
  static constexpr int kBlocksPerSm = kChained ? 1 : kSide == 128 ? 2 : sizeof(Sum) == 8 ? 2 : 4;
  static constexpr int kSamples = 128 / int(sizeof(Coefficient));  // of a slab
  static constexpr int kChain = 512 / kSamples;
  static constexpr int kStages = 3;
  static_assert(!(kChained && std::is_same_v<Sum, double>), "double sums need no chains");
  using LeftSlab = RowSlab<kSide>;
  using RightSlab = FeatureSlab<Element, kSamples, kSide>;

  struct Stage {
    alignas(128) char left[LeftSlab::kBytes];
    alignas(128) char right[RightSlab::kBytes];
  };
  struct Shared {
    union {
      Stage stage[kStages];
      Sum tile[kSide * Results::kStride];
    };
    alignas(16) Element shift[kSide];
  };

  struct Item {
    const ApplyParams::Layer& layer;
    int64_t token;
    int64_t row, col;  // of the block's results
    int64_t matrix;    // of the coefficients
  };

  PYGUIDE_DEVICE static Item item_of(const Params& p, int index) {
    const auto& layer = p.layer[layer_of(p.layer, p.layers, index)];
    const int64_t tiles = (layer.x.cols + kSide - 1) / kSide * p.row_tiles;
    const int64_t local = index - layer.first_item;
    const int64_t token = local / tiles, tile = local % tiles;
    return {layer, token, tile % p.row_tiles * kSide, tile / p.row_tiles * kSide,
            layer.first_matrix + token};
  }

  // A power of two that brings A's entries near 2^15: float16 overflows above, and holds fewer
  // digits far below. Of what float32 holds, the lower half of tiny entries would be subnormal.
  PYGUIDE_DEVICE static float scale_of(double bound) {
    if (!(bound > 0) || !(bound < HUGE_VAL)) return 1;
    int exponent;
    frexp(bound, &exponent);
    exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    return ldexpf(1.0f, 15 - exponent);
  }

  PYGUIDE_DEVICE static void multiply_stage(const Stage& stage, const Element* shift, float scale,
                                            typename Results::Sums& sums) {
    // Unrolled, it would need more than the 128 registers that let two blocks share an SM.
    PYGUIDE_NO_UNROLL
    for (int depth = 0; depth < kSamples; depth += Kind::kDepth) {
      typename Kind::Right b[Results::kColBlocks];
      PYGUIDE_UNROLL
      for (int j = 0; j < Results::kColBlocks; ++j) {
        b[j] = Kind::template right<RightSlab>(stage.right, depth, Results::first_col() + 16 * j,
                                               shift);
      }
      PYGUIDE_UNROLL
      for (int i = 0; i < Results::kRowBlocks; ++i) {
        const auto a = Kind::template left<LeftSlab>(stage.left, Results::first_row() + 16 * i,
                                                     depth, scale);
        PYGUIDE_UNROLL
        for (int j = 0; j < Results::kColBlocks; ++j) Kind::multiply(sums[i][j], a, b[j]);
      }
    }
  }

  PYGUIDE_DEVICE static void multiply(const Params& p, const Item& item, float scale,
                                      Shared& shared, typename Results::Sums& totals) {
    const char* a = p.coefficients.data +
                    item.matrix * p.coefficients.token_stride * int64_t(sizeof(Coefficient));
    const Source& x = item.layer.x;
    const char* matrix = x.data + item.token * x.token_stride * int64_t(sizeof(Element));
    const int count = int((p.n + kSamples - 1) / kSamples);
    auto load = [&](int s) {
      if (s < count) {
        Stage& stage = shared.stage[s % kStages];
        load_slab<Coefficient, LeftSlab, kThreads>(stage.left, p.coefficients, a, p.n, item.row,
                                                   int64_t(s) * kSamples);
        load_slab<Element, RightSlab, kThreads>(stage.right, x, matrix, p.n,
                                                int64_t(s) * kSamples, item.col);
      }
      ptx::commit_copies();  // an empty group too: the waits count groups
    };
    typename Results::Sums chain;
    Results::clear(chain);
    auto& sums = kChained ? chain : totals;
    for (int s = 0; s < kStages - 1; ++s) load(s);
    Shift<Element, kSide, kThreads>(x, matrix, p.n, item.col, p.shifted).write(shared.shift);
    for (int s = 0; s < count; ++s) {
      ptx::wait_for_copies<kStages - 2>("apply: slab landed");
      // Everybody's copies of this slab and the shift are there, and nobody reads the one before.
      ptx::block_barrier("apply: slab complete");
      load(s + kStages - 1);
      multiply_stage(shared.stage[s % kStages], shared.shift, scale, sums);
      if (kChained && (s + 1) % kChain == 0) Results::drain(sums, totals);
    }
    if (kChained) Results::drain(sums, totals);
    ptx::block_barrier("apply: slabs free");
  }

  PYGUIDE_DEVICE static void write(const Params& p, const Item& item, const Sum* tile,
                                   Sum inverse_scale) {
    const auto& layer = item.layer;
    const int64_t rows_left = p.n - item.row, cols_left = layer.x.cols - item.col;
    const int col = thread_index() % kSide, first = thread_index() / kSide;
    if (col >= cols_left) return;
    Element* out = reinterpret_cast<Element*>(layer.out) + item.token * layer.out_token_stride +
                   (item.col + col) * layer.out_col_stride + item.row * layer.out_row_stride;
    for (int row = first; row < kSide && row < rows_left; row += kThreads / kSide) {
      narrow_element(tile[row * Results::kStride + col] * inverse_scale,
                     out[row * layer.out_row_stride]);
    }
  }

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    const Item item = item_of(p, int(block_index()));
    const float scale = Kind::kScaled ? scale_of(p.bounds[item.matrix]) : 1.0f;
    typename Results::Sums totals;
    Results::clear(totals);
    multiply(p, item, scale, shared, totals);
    Results::store(totals, shared.tile);
    ptx::block_barrier("apply: tile stored");
    write(p, item, shared.tile, Sum(1 / scale));
  }
};

}  // namespace pyguide::cuda
