// From partial sums to centred Gram matrices: sums over the ranges of features in a fixed order,
// centres in double, rounds once, mirrors, and gives traces and norms.
//
// Both centrings have the form K_ij - (b_i + b_j):
//   H: b_i = r_i/n - m/2, with r the row sums and m the mean of all entries;
//   U: b_i = (that) - Kc_ii/(n-2) + tr(Kc)/(2(n-1)(n-2)), and a zero diagonal.
#pragma once

#include "core/matrix_view.h"
#include "cuda/reduction.h"
#include "cuda/work.h"

namespace pyguide::cuda {

constexpr int kSquare = 32;           // rows of what a block centres at a time
constexpr int kMaxStatChunks = 128;   // blocks of a matrix
constexpr int kCentredInBlock = 256;  // samples of which every block finds the row sums itself

struct GramFinishParams {
  struct Layer {
    const void* partial;     // the layer's items of gram_partial
    const double* row_sums;
    int32_t splits;
    int32_t side;  // of a tile
    bool in_double;
  };
  int64_t n;
  void* grams;    // of the launch's first layer
  double* stats;  // likewise
  double* offsets;  // n + 1 doubles a matrix above kCentredInBlock samples: b, and the trace
  int32_t layers;
  int32_t tokens;
  int32_t chunks;
  Centering centering;
  Layer layer[kMaxLayers];
};

// The partial sums of one matrix.
class Partials {
 public:
  PYGUIDE_DEVICE Partials(const GramFinishParams& p, int64_t matrix)
      : layer_(p.layer[matrix / p.tokens]), token_(matrix % p.tokens) {
    tiles_ = int((p.n + layer_.side - 1) / layer_.side);
  }

  // K_ij for j <= i.
  PYGUIDE_DEVICE double entry(int i, int j) const {
    const int side = layer_.side;
    const Square tile{i / side, j / side};
    const int64_t size = int64_t(side) * side;
    const int64_t at = first_item(tile) * size + int64_t(i % side) * side + j % side;
    const int64_t step = items_of_split() * size;
    return layer_.in_double
               ? sum_of(static_cast<const double*>(layer_.partial) + at, step, layer_.splits)
               : sum_of(static_cast<const float*>(layer_.partial) + at, step, layer_.splits);
  }

  PYGUIDE_DEVICE double row_sum(int i) const {
    const int side = layer_.side, own = i / side;
    double sum = 0;
    for (int other = 0; other < tiles_; ++other) {
      const bool is_row = other <= own;
      const Square tile = is_row ? Square{own, other} : Square{other, own};
      const int64_t at = first_item(tile) * 2 * side + i % side + (is_row ? 0 : side);
      sum += sum_of(layer_.row_sums + at, items_of_split() * 2 * side, layer_.splits);
    }
    return sum;
  }

 private:
  PYGUIDE_DEVICE int64_t items_of_split() const { return int64_t(tiles_) * (tiles_ + 1) / 2; }

  // The tile's item of the first range of features.
  PYGUIDE_DEVICE int64_t first_item(Square tile) const {
    return token_ * layer_.splits * items_of_split() + index_of(tile);
  }

  const GramFinishParams::Layer& layer_;
  int64_t token_;
  int tiles_;
};

// Writes b for all samples and returns the trace, a block together. Ends with a barrier.
template <int kThreads>
PYGUIDE_DEVICE double centre_offsets(const GramFinishParams& p, const Partials& k, double* b,
                                     double* scratch) {
  const int n = int(p.n);
  double sum = 0;
  for (int i = thread_index(); i < n; i += kThreads) {
    b[i] = k.row_sum(i) / double(n);
    sum += b[i];
  }
  const double mean = block_sum<kThreads>(sum, scratch) / double(n);
  double diagonal = 0;
  for (int i = thread_index(); i < n; i += kThreads) {
    b[i] -= mean / 2;
    diagonal += k.entry(i, i) - 2 * b[i];
  }
  const double trace = block_sum<kThreads>(diagonal, scratch);
  if (p.centering == Centering::kU) {
    const double grand = trace / (2 * double(n - 1) * double(n - 2));
    for (int i = thread_index(); i < n; i += kThreads) {
      b[i] += grand - (k.entry(i, i) - 2 * b[i]) / double(n - 2);
    }
  }
  ptx::block_barrier("centring: offsets written");
  return trace;
}

// b and the trace of each matrix, for batches that are too large for every block to find them.
struct GramOffsets {
  using Params = GramFinishParams;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 2;
  struct Shared {
    double scratch[kThreads / kWarp];
  };

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    double* b = p.offsets + block_index() * (p.n + 1);
    const double trace =
        centre_offsets<kThreads>(p, Partials(p, block_index()), b, shared.scratch);
    if (thread_index() == 0) b[p.n] = trace;
  }
};

template <class Out>
struct GramFinish {
  using Params = GramFinishParams;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static constexpr int kStep = kThreads / kSquare;  // rows of a square at once
  struct Shared {
    double offsets[kCentredInBlock];
    double scratch[kThreads / kWarp];
    Out square[kSquare][kSquare + 1];
  };

  // Centres one square of the lower triangle and mirrors it; returns this thread's part of the
  // squared norm.
  PYGUIDE_DEVICE static double finish_square(const Params& p, const Partials& k, const double* b,
                                             Square square, Out* gram, Shared& shared) {
    const int n = int(p.n);
    const int col = thread_index() % kSquare, first = thread_index() / kSquare;
    const int j = square.col * kSquare + col;
    const bool diagonal = square.row == square.col;
    double norm = 0;
    for (int row = first; row < kSquare; row += kStep) {
      const int i = square.row * kSquare + row;
      if (i >= n || j >= n) continue;
      double value = i >= j ? k.entry(i, j) : k.entry(j, i);
      if (b != nullptr) value -= b[i] + b[j];
      if (p.centering == Centering::kU && i == j) value = 0;
      const Out rounded = Out(value);
      gram[int64_t(i) * n + j] = rounded;
      if (!diagonal) shared.square[row][col] = rounded;
      norm += double(rounded) * double(rounded) * (diagonal ? 1 : 2);
    }
    if (diagonal) return norm;
    ptx::block_barrier("finish: square stored");
    const int mirrored = square.row * kSquare + col;
    for (int row = first; row < kSquare; row += kStep) {
      const int i = square.col * kSquare + row;
      if (i < n && mirrored < n) gram[int64_t(i) * n + mirrored] = shared.square[col][row];
    }
    ptx::block_barrier("finish: square free");
    return norm;
  }

  PYGUIDE_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t matrix = block_index() / p.chunks;
    const int chunk = int(block_index() % p.chunks);
    const Partials k(p, matrix);
    const double* b = nullptr;
    double trace = 0;
    if (p.centering != Centering::kNone) {
      if (p.n <= kCentredInBlock) {
        trace = centre_offsets<kThreads>(p, k, shared.offsets, shared.scratch);
        b = shared.offsets;
      } else {
        b = p.offsets + matrix * (p.n + 1);
        trace = b[p.n];
      }
    }
    const int rows = int((p.n + kSquare - 1) / kSquare);
    Out* gram = static_cast<Out*>(p.grams) + matrix * p.n * p.n;
    double norm = 0;
    for (int s = chunk; s < rows * (rows + 1) / 2; s += p.chunks) {
      norm += finish_square(p, k, b, square_of(s), gram, shared);
    }
    if (p.centering == Centering::kNone) return;
    norm = block_sum<kThreads>(norm, shared.scratch);
    if (thread_index() != 0) return;
    double* stats = p.stats + (matrix * p.chunks + chunk) * 2;
    stats[0] = chunk == 0 ? trace : 0;
    stats[1] = norm;
  }
};

}  // namespace pyguide::cuda
