// The kinds of product in dX = A (X - s). A's rows come from a RowSlab, their depth in memory
// order; X's columns from a FeatureSlab, whose depth, the samples, runs down the rows. Otherwise
// as in arithmetic.h; g = lane / 4 and t = lane % 4.
//
// A kind has
//   Element       of X        Coefficient   of A        Sum   what products are summed in
//   kDepth        samples of one product
//   kScaled       whether A is multiplied by a power of two that the results are divided by
//   left          16 rows of A, times `scale`
//   right         16 columns of X, minus their shift
//   multiply      c[b] += the 16 x 8 products with columns 8b to 8b + 7
#pragma once

#include "cuda/arithmetic.h"

namespace pyguide::cuda {

// A in 16 bits would lose the digits by which its rows sum to zero: it is split into two numbers.
template <class Pack>
struct SplitCoefficients {
  using Coefficient = float;
  using Sum = float;
  static constexpr int kDepth = 16;
  static constexpr bool kScaled = true;
  struct Left {
    uint32_t high[4], low[4];
  };
  struct Right {
    uint32_t word[4];
  };

  template <class Slab>
  PYGUIDE_DEVICE static Left left(const char* slab, int row, int depth, float scale) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    Left a;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const int k = depth + 2 * t + w / 2 * 8;
      const char* chunk = slab + Slab::offset(row + g + w % 2 * 8, k / 4);
      const float* from = reinterpret_cast<const float*>(chunk) + k % 4;
      const float x = from[0] * scale, y = from[1] * scale;
      a.high[w] = Pack::pack(x, y);
      a.low[w] = Pack::pack(x - Pack::low(a.high[w]), y - Pack::high(a.high[w]));
    }
    return a;
  }

  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Left& a, const Right& b) {
    PYGUIDE_UNROLL
    for (int h = 0; h < 2; ++h) {
      Pack::mma(c[h], a.low, b.word[2 * h], b.word[2 * h + 1]);
      Pack::mma(c[h], a.high, b.word[2 * h], b.word[2 * h + 1]);
    }
  }
};

// bfloat16 and float16 features.
template <class Element_, class Pack>
struct ApplyPacked : SplitCoefficients<Pack> {
  using Element = Element_;
  using Right = typename SplitCoefficients<Pack>::Right;

  template <class Slab>
  PYGUIDE_DEVICE static Right right(const char* slab, int depth, int col, const Element* shift) {
    const int m = lane_index() / 8, r = lane_index() % 8, g = lane_index() / 4;
    uint32_t words[4];
    ptx::load_matrices_transposed(words,
                                  slab + Slab::offset(depth + m % 2 * 8 + r, col / 8 + m / 2));
    Right b;
    PYGUIDE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const uint32_t s = shift[col + 8 * h + g].bits;
      b.word[2 * h] = Pack::subtract(words[2 * h], s << 16 | s);
      b.word[2 * h + 1] = Pack::subtract(words[2 * h + 1], s << 16 | s);
    }
    return b;
  }
};

using ApplyBFloat16 = ApplyPacked<bfloat16, PackBFloat16>;
using ApplyFloat16 = ApplyPacked<float16, PackFloat16>;

// float32 features at precision "medium".
struct ApplyRounded : SplitCoefficients<PackBFloat16> {
  using Element = float;

  template <class Slab>
  PYGUIDE_DEVICE static Right right(const char* slab, int depth, int col, const float* shift) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    Right b;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const int k = depth + 2 * t + w % 2 * 8, column = col + g + w / 2 * 8;
      auto x = [&](int row) {
        return *reinterpret_cast<const float*>(slab + Slab::element(row, column)) - shift[column];
      };
      b.word[w] = ptx::pack_bf16(x(k), x(k + 1));
    }
    return b;
  }
};

// Features g and g + 8 at depths t and t + 4: word 2h + v is depth t + 4v of column g + 8h.
template <class Slab>
PYGUIDE_DEVICE float shifted_feature(const char* slab, int depth, int col, const float* shift,
                                     int word) {
  const int row = depth + lane_index() % 4 + word % 2 * 4;
  const int column = col + lane_index() / 4 + word / 2 * 8;
  return *reinterpret_cast<const float*>(slab + Slab::element(row, column)) - shift[column];
}

// float32 features at precision "high".
struct ApplyTf32 {
  using Element = float;
  using Coefficient = float;
  using Sum = float;
  static constexpr int kDepth = 8;
  static constexpr bool kScaled = false;
  struct Left {
    uint32_t word[4];
  };
  using Right = Left;

  template <class Slab>
  PYGUIDE_DEVICE static Left left(const char* slab, int row, int depth, float) {
    Left a;
    load_words<Side::kLeft, Slab>(a.word, slab, row, depth / 4);
    PYGUIDE_UNROLL
    for (uint32_t& word : a.word) word = ptx::round_to_tf32(ptx::float_of(word));
    return a;
  }
  template <class Slab>
  PYGUIDE_DEVICE static Right right(const char* slab, int depth, int col, const float* shift) {
    Right b;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      b.word[w] = ptx::round_to_tf32(shifted_feature<Slab>(slab, depth, col, shift, w));
    }
    return b;
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Left& a, const Right& b) {
    ptx::mma_tf32(c[0], a.word, b.word[0], b.word[1]);
    ptx::mma_tf32(c[1], a.word, b.word[2], b.word[3]);
  }
};

// float32 features at precision "highest".
struct ApplyTf32x3 {
  using Element = float;
  using Coefficient = float;
  using Sum = float;
  static constexpr int kDepth = 8;
  static constexpr bool kScaled = true;
  using Left = Tf32x3Kind::Rows;
  using Right = Tf32x3Kind::Rows;

  template <class Slab>
  PYGUIDE_DEVICE static Left left(const char* slab, int row, int depth, float scale) {
    uint32_t words[4];
    load_words<Side::kLeft, Slab>(words, slab, row, depth / 4);
    Left a;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const SplitFloat split = split_tf32(ptx::float_of(words[w]) * scale);
      a.high[w] = split.high;
      a.low[w] = split.low;
    }
    return a;
  }
  template <class Slab>
  PYGUIDE_DEVICE static Right right(const char* slab, int depth, int col, const float* shift) {
    Right b;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const SplitFloat split = split_tf32(shifted_feature<Slab>(slab, depth, col, shift, w));
      b.high[w] = split.high;
      b.low[w] = split.low;
    }
    return b;
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Left& a, const Right& b) {
    Tf32x3Kind::multiply(c, a, b);
  }
};

// float64 features; the coefficients are float32 where other layers of the call are.
template <class Coefficient_>
struct ApplyFloat64 {
  using Element = double;
  using Coefficient = Coefficient_;
  using Sum = double;
  static constexpr int kDepth = 4;
  static constexpr bool kScaled = false;
  struct Left {
    double value[2];
  };
  using Right = Left;

  template <class Slab>
  PYGUIDE_DEVICE static Left left(const char* slab, int row, int depth, float) {
    constexpr int kPerChunk = kChunkBytes / int(sizeof(Coefficient));
    const int g = lane_index() / 4, k = depth + lane_index() % 4;
    Left a;
    PYGUIDE_UNROLL
    for (int v = 0; v < 2; ++v) {
      const char* chunk = slab + Slab::offset(row + g + 8 * v, k / kPerChunk);
      a.value[v] = reinterpret_cast<const Coefficient*>(chunk)[k % kPerChunk];
    }
    return a;
  }
  template <class Slab>
  PYGUIDE_DEVICE static Right right(const char* slab, int depth, int col, const double* shift) {
    const int g = lane_index() / 4, k = depth + lane_index() % 4;
    Right b;
    PYGUIDE_UNROLL
    for (int v = 0; v < 2; ++v) {
      const int column = col + g + 8 * v;
      b.value[v] =
          *reinterpret_cast<const double*>(slab + Slab::element(k, column)) - shift[column];
    }
    return b;
  }
  PYGUIDE_DEVICE static void multiply(double (&c)[2][4], const Left& a, const Right& b) {
    multiply_f64(c, a.value, b.value);
  }
};

}  // namespace pyguide::cuda
