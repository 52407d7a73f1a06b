// How kernels find their share of the work.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device.h"

namespace pyguide::cuda {

// Layers, pairs and terms of one launch: what fits into 32,764 bytes of parameters. Longer lists
// take several launches.
constexpr int kMaxLayers = 256;
constexpr int kMaxPairs = 2048;

struct Square {
  int row, col;
};

// Entry `index` of a lower triangle that is listed row by row.
PYGUIDE_DEVICE Square square_of(int index) {
  int row = int((sqrtf(8.0f * float(index) + 1.0f) - 1.0f) / 2.0f);
  while (row * (row + 1) / 2 > index) --row;
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {row, index - row * (row + 1) / 2};
}

PYGUIDE_DEVICE int index_of(Square square) {
  return square.row * (square.row + 1) / 2 + square.col;
}

inline int64_t triangle(int64_t rows) { return rows * (rows + 1) / 2; }

// The last of `count` entries, ordered by their first_item, that starts at or before `item`.
template <class Layer>
PYGUIDE_DEVICE int layer_of(const Layer* layers, int count, int item) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (layers[middle].first_item <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace pyguide::cuda
