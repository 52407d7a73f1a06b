// The kinds of product that the tensor cores offer: how operands are fetched from slabs, shifted,
// rounded and multiplied. Gram matrices multiply rows with rows; the fragments' layouts are in
// ptx/mma.h, g = lane / 4 and t = lane % 4.
//
// A kind has
//   Element   what is in memory             Sum   what products are summed in
//   kDepth    features of one product       Rows  16 rows, or 16 columns, of that depth
//   rows<k>   fetches Rows from a RowSlab, minus the shift of its features
//   multiply  c[b] += the 16 x 8 products of rows with columns 8b to 8b + 7
#pragma once

#include "core/dtype.h"
#include "cuda/packed.h"
#include "cuda/ptx/matrix.h"
#include "cuda/source.h"

namespace pyguide::cuda {

// Whether 16 rows are the left operand of a product, or the columns of the right one.
enum class Side { kLeft, kRight };

PYGUIDE_DEVICE double widen_element(double x) { return x; }
PYGUIDE_DEVICE float widen_element(float x) { return x; }
PYGUIDE_DEVICE float widen_element(bfloat16 x) { return ptx::float_of_bf16(x.bits); }
PYGUIDE_DEVICE float widen_element(float16 x) { return ptx::float_of_f16(x.bits); }

PYGUIDE_DEVICE void narrow_element(double x, double& out) { out = x; }
PYGUIDE_DEVICE void narrow_element(double x, float& out) { out = float(x); }
PYGUIDE_DEVICE void narrow_element(float x, float& out) { out = x; }
PYGUIDE_DEVICE void narrow_element(float x, bfloat16& out) {
  out.bits = uint16_t(ptx::pack_bf16(x, 0.0f));
}
PYGUIDE_DEVICE void narrow_element(float x, float16& out) {
  out.bits = uint16_t(ptx::pack_f16(x, 0.0f));
}

// Four 8 x 16-byte matrices of a slab: 16 rows and two chunks, as mma wants them. On the left
// words 0 and 1 are rows g and g + 8 of the first chunk; on the right words 0 and 1 are the two
// chunks of row g. `shift` gets the words of the shift that belong to the first and second chunk.
template <Side kSide, class Slab>
PYGUIDE_DEVICE void load_words(uint32_t (&words)[4], const char* slab, int row, int chunk) {
  const int m = lane_index() / 8, r = lane_index() % 8;
  const int below = kSide == Side::kLeft ? m % 2 : m / 2;
  const int beside = kSide == Side::kLeft ? m / 2 : m % 2;
  ptx::load_matrices(words, slab + Slab::offset(row + 8 * below + r, chunk + beside));
}

// Which of the two chunks word `w` comes from.
template <Side kSide>
PYGUIDE_DEVICE constexpr int chunk_of_word(int w) {
  return kSide == Side::kLeft ? w / 2 : w % 2;
}

PYGUIDE_DEVICE uint32_t shift_word(const char* shift, int chunk) {
  return reinterpret_cast<const uint32_t*>(shift)[chunk * 4 + lane_index() % 4];
}

struct SplitFloat {
  uint32_t high, low;
};

// x = high + low to 21 bits or more, both in tf32: mma ignores the bits of `low` that are too many.
PYGUIDE_DEVICE SplitFloat split_tf32(float x) {
  // What the conversion leaves in the low 13 bits, which mma ignores, is not documented.
  const uint32_t high = ptx::round_to_tf32(x) & 0xffffe000u;
  return {high, ptx::bits_of(x - ptx::float_of(high))};
}

template <class Element_, int kDepth_>
struct WordKind {
  using Element = Element_;
  using Sum = float;
  static constexpr int kDepth = kDepth_;
  struct Rows {
    uint32_t word[4];
  };

  template <Side kSide, class Slab, class Convert>
  PYGUIDE_DEVICE static Rows fetch(const char* slab, int row, int depth, const char* shift,
                                   Convert&& convert) {
    const int chunk = depth / (kChunkBytes / int(sizeof(Element)));
    uint32_t words[4];
    load_words<kSide, Slab>(words, slab, row, chunk);
    const uint32_t shifts[2] = {shift_word(shift, chunk), shift_word(shift, chunk + 1)};
    Rows rows;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) rows.word[w] = convert(words[w], shifts[chunk_of_word<kSide>(w)]);
    return rows;
  }
};

// bfloat16 and float16. Pack: csrc/cuda/packed.h.
template <class Element, class Pack>
struct PackedKind : WordKind<Element, 16> {
  using Rows = typename WordKind<Element, 16>::Rows;

  template <Side kSide, class Slab>
  PYGUIDE_DEVICE static Rows rows(const char* slab, int row, int depth, const char* shift) {
    return WordKind<Element, 16>::template fetch<kSide, Slab>(
        slab, row, depth, shift, [](uint32_t x, uint32_t s) { return Pack::subtract(x, s); });
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Rows& a, const Rows& b) {
    Pack::mma(c[0], a.word, b.word[0], b.word[1]);
    Pack::mma(c[1], a.word, b.word[2], b.word[3]);
  }
};

using BFloat16Kind = PackedKind<bfloat16, PackBFloat16>;
using Float16Kind = PackedKind<float16, PackFloat16>;

// float32 at precision "high".
struct Tf32Kind : WordKind<float, 8> {
  template <Side kSide, class Slab>
  PYGUIDE_DEVICE static Rows rows(const char* slab, int row, int depth, const char* shift) {
    return fetch<kSide, Slab>(slab, row, depth, shift, [](uint32_t x, uint32_t s) {
      return ptx::round_to_tf32(ptx::float_of(x) - ptx::float_of(s));
    });
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Rows& a, const Rows& b) {
    ptx::mma_tf32(c[0], a.word, b.word[0], b.word[1]);
    ptx::mma_tf32(c[1], a.word, b.word[2], b.word[3]);
  }
};

// float32 at precision "highest": x = high + low, and the products of which neither is low.
struct Tf32x3Kind {
  using Element = float;
  using Sum = float;
  static constexpr int kDepth = 8;
  struct Rows {
    uint32_t high[4], low[4];
  };

  template <Side kSide, class Slab>
  PYGUIDE_DEVICE static Rows rows(const char* slab, int row, int depth, const char* shift) {
    const int chunk = depth / 4;
    uint32_t words[4];
    load_words<kSide, Slab>(words, slab, row, chunk);
    const uint32_t shifts[2] = {shift_word(shift, chunk), shift_word(shift, chunk + 1)};
    Rows rows;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const float s = ptx::float_of(shifts[chunk_of_word<kSide>(w)]);
      const SplitFloat split = split_tf32(ptx::float_of(words[w]) - s);
      rows.high[w] = split.high;
      rows.low[w] = split.low;
    }
    return rows;
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Rows& a, const Rows& b) {
    PYGUIDE_UNROLL
    for (int h = 0; h < 2; ++h) {
      // The small ones first: a sum that is large already would drop more of their bits.
      ptx::mma_tf32(c[h], a.low, b.high[2 * h], b.high[2 * h + 1]);
      ptx::mma_tf32(c[h], a.high, b.low[2 * h], b.low[2 * h + 1]);
      ptx::mma_tf32(c[h], a.high, b.high[2 * h], b.high[2 * h + 1]);
    }
  }
};

// float32 at precision "medium": shifted in float32, then rounded to bfloat16.
struct RoundedKind {
  using Element = float;
  using Sum = float;
  static constexpr int kDepth = 16;
  struct Rows {
    uint32_t word[4];
  };

  template <Side kSide, class Slab>
  PYGUIDE_DEVICE static Rows rows(const char* slab, int row, int depth, const char* shift) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    Rows rows;
    PYGUIDE_UNROLL
    for (int w = 0; w < 4; ++w) {
      const int r = row + g + 8 * (kSide == Side::kLeft ? w % 2 : w / 2);
      const int k = depth + 2 * t + 8 * chunk_of_word<kSide>(w);
      const auto* x = reinterpret_cast<const float*>(slab + Slab::offset(r, k / 4)) + k % 4;
      const auto* s = reinterpret_cast<const float*>(shift) + k;
      rows.word[w] = ptx::pack_bf16(x[0] - s[0], x[1] - s[1]);
    }
    return rows;
  }
  PYGUIDE_DEVICE static void multiply(float (&c)[2][4], const Rows& a, const Rows& b) {
    ptx::mma_bf16(c[0], a.word, b.word[0], b.word[1]);
    ptx::mma_bf16(c[1], a.word, b.word[2], b.word[3]);
  }
};

PYGUIDE_DEVICE void multiply_f64(double (&c)[2][4], const double (&a)[2], const double (&b)[2]) {
  PYGUIDE_UNROLL
  for (int h = 0; h < 2; ++h) {
    PYGUIDE_UNROLL
    for (int v = 0; v < 2; ++v) {
      double sums[2] = {c[h][2 * v], c[h][2 * v + 1]};
      ptx::mma_f64(sums, a[v], b[h]);
      c[h][2 * v] = sums[0];
      c[h][2 * v + 1] = sums[1];
    }
  }
}

// float64, and float32 in batches so small that the debiased estimator cancels most of a sum.
template <class Element_>
struct Float64Kind {
  using Element = Element_;
  using Sum = double;
  static constexpr int kDepth = 4;
  struct Rows {
    double value[2];  // rows g and g + 8, depth t
  };

  template <Side kSide, class Slab>
  PYGUIDE_DEVICE static Rows rows(const char* slab, int row, int depth, const char* shift) {
    constexpr int kPerChunk = kChunkBytes / int(sizeof(Element));
    const int g = lane_index() / 4, k = depth + lane_index() % 4;
    const double s = reinterpret_cast<const Element*>(shift)[k];
    Rows rows;
    PYGUIDE_UNROLL
    for (int v = 0; v < 2; ++v) {
      const char* chunk = slab + Slab::offset(row + g + 8 * v, k / kPerChunk);
      rows.value[v] = double(reinterpret_cast<const Element*>(chunk)[k % kPerChunk]) - s;
    }
    return rows;
  }
  PYGUIDE_DEVICE static void multiply(double (&c)[2][4], const Rows& a, const Rows& b) {
    multiply_f64(c, a.value, b.value);
  }
};

}  // namespace pyguide::cuda
