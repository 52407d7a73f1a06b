// Packing: read a rectangle of a strided matrix of any dtype once, convert it, subtract the
// shift, and lay it out for the micro-kernel. Internal linkage; see micro_kernel.h.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "cpu/kernels.h"
#include "cpu/micro_kernel.h"

namespace pyguide::cpu {
namespace {

constexpr int64_t kShiftRows = 16;

// Calls body with a typed pointer to the view's data.
template <class Body>
inline void with_typed_data(const MatrixView& view, Body&& body) {
  switch (view.dtype) {
    case DType::kFloat64:
      return body(static_cast<const double*>(view.data));
    case DType::kFloat32:
      return body(static_cast<const float*>(view.data));
    case DType::kBFloat16:
      return body(static_cast<const bfloat16*>(view.data));
    case DType::kFloat16:
      return body(static_cast<const float16*>(view.data));
  }
}

template <class Source, class T>
void column_shift_of(const Source* x, const MatrixView& view, int64_t cols, T* shift) {
  const int64_t samples = view.rows < kShiftRows ? view.rows : kShiftRows;
  for (int64_t c = 0; c < cols; ++c) shift[c] = T(0);
  for (int64_t s = 1; s < samples; ++s) {
    const Source* row = x + (view.rows * s / samples) * view.row_stride;
    if (view.col_stride == 1) {
      for (int64_t c = 0; c < cols; ++c) shift[c] += T(widen(row[c])) - T(widen(x[c]));
    } else {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t at = c * view.col_stride;
        shift[c] += T(widen(row[at])) - T(widen(x[at]));
      }
    }
  }
  const T scale = T(1) / T(samples);
  for (int64_t c = 0; c < cols; ++c) {
    shift[c] = T(widen(x[c * view.col_stride])) + shift[c] * scale;
  }
}

template <class T>
void column_shift(const MatrixView& view, int64_t col, int64_t cols, T* shift) {
  with_typed_data(view, [&](auto* x) {
    column_shift_of(x + col * view.col_stride, view, cols, shift);
  });
}

// Transposition inside 128-bit lanes: moves between lanes are slow on many CPUs, and loading each
// lane from its own row makes them unnecessary.
template <class T, int W>
struct Lanes {
  using Vector = typename VectorOf<T, W>::type;
  static constexpr int kLane = 16 / sizeof(T);  // elements of a lane

  // The vector whose lane g holds kLane elements from x + g * kLane * stride.
  static inline Vector load(const T* x, int64_t stride) {
    typedef T Loose __attribute__((vector_size(16), aligned(sizeof(T))));
    if constexpr (W == kLane) {
      return *reinterpret_cast<const Loose*>(x);
    } else {
      using Half = Lanes<T, W / 2>;
      return concatenate(Half::load(x, stride), Half::load(x + W / 2 * stride, stride),
                         std::make_integer_sequence<int, W>{});
    }
  }

  // rows[i], lane g, element j becomes rows[j], lane g, element i: log2(kLane) rounds of
  // interleaving row i with row i + kLane/2.
  static inline void transpose(Vector (&rows)[kLane]) {
#pragma GCC unroll 2
    for (int round = 1; round < kLane; round *= 2) {
      Vector next[kLane];
#pragma GCC unroll 2
      for (int i = 0; i < kLane / 2; ++i) {
        next[2 * i] = interleave<0>(rows[i], rows[i + kLane / 2], kElements);
        next[2 * i + 1] = interleave<kLane / 2>(rows[i], rows[i + kLane / 2], kElements);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kLane; ++i) rows[i] = next[i];
    }
  }

 private:
  static constexpr std::make_integer_sequence<int, W> kElements{};

  template <class Half, int... I>
  static inline Vector concatenate(Half a, Half b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);  // the list below takes GCC ten instructions
#else
    return Vector{(I < W / 2 ? a[I % (W / 2)] : b[I % (W / 2)])...};
#endif
  }

  // In every lane: a[first], b[first], a[first + 1], b[first + 1], ...
  template <int first, int... I>
  static inline Vector interleave(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return Vector{(I % 2 == 0 ? a : b)[I / kLane * kLane + first + I % kLane / 2]...};
  }
};

template <class T, int W, int64_t kSliver>
struct Packing {
  using Vector = typename VectorOf<T, W>::type;
  using Lane = Lanes<T, W>;
  static constexpr int64_t kStep = 128;  // depth converted at a time: the strip stays in L1

  // W rows of T, contiguous along the depth, to packed[k][0..W).
  template <bool kShifted>
  static inline void transpose_rows(const T* x, int64_t row_stride, int64_t depths,
                                    const T* shift, T* packed) {
    int64_t k = 0;
    for (; k + Lane::kLane <= depths; k += Lane::kLane) {
      Vector rows[Lane::kLane];
#pragma GCC unroll 4
      for (int r = 0; r < Lane::kLane; ++r) {
        rows[r] = Lane::load(x + r * row_stride + k, row_stride);
        if constexpr (kShifted) rows[r] -= Lane::load(shift + k, 0);
      }
      Lane::transpose(rows);
#pragma GCC unroll 4
      for (int i = 0; i < Lane::kLane; ++i) {
        *reinterpret_cast<Vector*>(packed + (k + i) * kSliver) = rows[i];
      }
    }
    for (; k < depths; ++k) {
      for (int64_t r = 0; r < W; ++r) {
        const T value = x[r * row_stride + k];
        packed[k * kSliver + r] = kShifted ? value - shift[k] : value;
      }
    }
  }

  // out[i] = x[i] as T, minus the shift.
  template <class Source>
  static inline void convert(const Source* x, int64_t stride, int64_t count, ShiftAxis axis,
                             const T* shift, T* out) {
    auto fill = [&](auto&& at, auto&& shift_at) {
      for (int64_t i = 0; i < count; ++i) out[i] = T(widen(at(i))) - shift_at(i);
    };
    auto with_shift = [&](auto&& at) {
      if (axis == ShiftAxis::kDepth) {
        fill(at, [&](int64_t i) { return shift[i]; });
      } else {
        const T constant = axis == ShiftAxis::kRow ? *shift : T(0);
        fill(at, [&](int64_t) { return constant; });
      }
    };
    if (stride == 1) {
      with_shift([&](int64_t i) { return x[i]; });
    } else {
      with_shift([&](int64_t i) { return x[i * stride]; });
    }
  }

  // Up to W rows; the missing ones are zeros. They are transposed where they lie, or from a strip
  // that they are converted into.
  template <class Source>
  static inline void pack_group(const Source* x, const MatrixView& view, ShiftAxis axis,
                                int64_t rows, int64_t depths, const T* shift, T* packed) {
    if constexpr (std::is_same_v<Source, T>) {
      if (rows >= W && view.col_stride == 1 && axis == ShiftAxis::kDepth) {
        return transpose_rows<true>(x, view.row_stride, depths, shift, packed);
      }
      if (rows >= W && view.col_stride == 1 && axis == ShiftAxis::kNone) {
        return transpose_rows<false>(x, view.row_stride, depths, nullptr, packed);
      }
    }
    alignas(64) T strip[W * kStep];
    for (int64_t k = 0; k < depths; k += kStep) {
      const int64_t steps = depths - k < kStep ? depths - k : kStep;
      for (int64_t i = 0; i < W; ++i) {
        T* to = strip + i * kStep;
        if (i >= rows) {
          for (int64_t j = 0; j < steps; ++j) to[j] = T(0);
          continue;
        }
        const T* own_shift = axis == ShiftAxis::kRow ? shift + i : nullptr;
        convert(x + i * view.row_stride + k * view.col_stride, view.col_stride, steps, axis,
                axis == ShiftAxis::kDepth ? shift + k : own_shift, to);
      }
      transpose_rows<false>(strip, kStep, steps, nullptr, packed + k * kSliver);
    }
  }

  // The depth axis is the contiguous one, or neither is.
  template <class Source>
  static void pack_rows(const Source* x, const MatrixView& view, ShiftAxis axis, int64_t rows,
                        int64_t depths, const T* shift, T* packed) {
    for (int64_t sliver = 0; sliver < rows; sliver += kSliver) {
      for (int64_t r = sliver; r < sliver + kSliver; r += W) {
        pack_group(x + r * view.row_stride, view, axis, rows - r, depths,
                   axis == ShiftAxis::kRow ? shift + r : shift,
                   packed + sliver * depths + r - sliver);
      }
    }
  }

  // The row axis is the contiguous one: the packed layout is the source's own order. Every depth
  // is read through once, from sliver to sliver.
  template <class Source>
  static void pack_depths(const Source* x, const MatrixView& view, ShiftAxis axis, int64_t rows,
                          int64_t depths, const T* shift, T* packed) {
    for (int64_t k = 0; k < depths; ++k) {
      const Source* from = x + k * view.col_stride;
      const T depth_shift = axis == ShiftAxis::kDepth ? shift[k] : T(0);
      for (int64_t r = 0; r < rows; r += kSliver) {
        T* to = packed + r * depths + k * kSliver;
        if (r + kSliver <= rows && view.row_stride == 1) {
          if (axis == ShiftAxis::kRow) {
            for (int64_t i = 0; i < kSliver; ++i) to[i] = T(widen(from[r + i])) - shift[r + i];
          } else {
            for (int64_t i = 0; i < kSliver; ++i) to[i] = T(widen(from[r + i])) - depth_shift;
          }
          continue;
        }
        for (int64_t i = 0; i < kSliver; ++i) {
          if (r + i >= rows) {
            to[i] = T(0);
            continue;
          }
          const T s = axis == ShiftAxis::kRow ? shift[r + i] : depth_shift;
          to[i] = T(widen(from[(r + i) * view.row_stride])) - s;
        }
      }
    }
  }

  static void pack(const Operand& operand, const Part& part, const T* shift, T* packed) {
    const MatrixView& view = operand.view;
    with_typed_data(view, [&](auto* data) {
      const auto* x = data + part.row * view.row_stride + part.depth * view.col_stride;
      if (view.row_stride < view.col_stride) {
        pack_depths(x, view, operand.shift_axis, part.rows, part.depths, shift, packed);
      } else {
        pack_rows(x, view, operand.shift_axis, part.rows, part.depths, shift, packed);
      }
    });
  }
};

}  // namespace
}  // namespace pyguide::cpu
