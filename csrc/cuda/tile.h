// A block's tile of results: kSide x kSide sums spread over the registers of its warps.
#pragma once

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/warp.h"

namespace pyguide::cuda {

// 128 x 128 results take eight warps of 64 x 32, 64 x 64 four warps of 32 x 32.
template <class Sum, int kSide_>
struct Tile {
  static constexpr int kSide = kSide_;
  static_assert(kSide == 64 || kSide == 128, "tiles have 64 or 128 rows");
  static constexpr int kThreads = 2 * kSide;
  static constexpr int kWarpRows = kSide / 2;
  static constexpr int kWarpCols = 32;
  static constexpr int kRowBlocks = kWarpRows / 16;
  static constexpr int kColBlocks = kWarpCols / 16;
  static constexpr int kStride = kSide + 1;  // of the tile in shared memory: odd, for the banks
  using Sums = Sum[kRowBlocks][kColBlocks][2][4];

  PYGUIDE_DEVICE static int first_row() { return warp_index() % 2 * kWarpRows; }
  PYGUIDE_DEVICE static int first_col() { return warp_index() / 2 * kWarpCols; }

  // Whether all results of this warp lie above the diagonal, a quarter of the warps: nobody needs
  // them where the tile is symmetric.
  PYGUIDE_DEVICE static bool above_diagonal() { return first_col() >= first_row() + kWarpRows; }

  PYGUIDE_DEVICE static void clear(Sums& sums) {
    each([&](int i, int j, int h, int v) { sums[i][j][h][v] = 0; });
  }

  // Moves sums to totals.
  PYGUIDE_DEVICE static void drain(Sums& sums, Sums& totals) {
    each([&](int i, int j, int h, int v) {
      totals[i][j][h][v] += sums[i][j][h][v];
      sums[i][j][h][v] = 0;
    });
  }

  // Writes the sums to shared memory; a barrier must follow.
  PYGUIDE_DEVICE static void store(const Sums& sums, Sum* tile) {
    const int row = first_row() + lane_index() / 4, col = first_col() + lane_index() % 4 * 2;
    each([&](int i, int j, int h, int v) {
      tile[(row + 16 * i + v / 2 * 8) * kStride + col + 16 * j + 8 * h + v % 2] = sums[i][j][h][v];
    });
  }

 private:
  template <class Body>
  PYGUIDE_DEVICE static void each(Body&& body) {
    PYGUIDE_UNROLL
    for (int i = 0; i < kRowBlocks; ++i) {
      PYGUIDE_UNROLL
      for (int j = 0; j < kColBlocks; ++j) {
        PYGUIDE_UNROLL
        for (int h = 0; h < 2; ++h) {
          PYGUIDE_UNROLL
          for (int v = 0; v < 4; ++v) body(i, j, h, v);
        }
      }
    }
  }
};

}  // namespace pyguide::cuda
