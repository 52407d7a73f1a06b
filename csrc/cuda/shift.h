// The per-feature shift that is subtracted before products are formed: x_0 + mean(x_r - x_0) over
// at most 16 samples, spread over the batch, which may be sorted. It need not be the mean, only
// near it and the same for all tiles of a matrix; a constant feature gives exact zeros. It is
// rounded to the elements' own type, so that a shifted element is rounded once.
#pragma once

#include "cuda/arithmetic.h"
#include "cuda/ptx/warp.h"

namespace pyguide::cuda {

constexpr int kShiftSamples = 16;

// The shift of kFeatures features by kThreads threads: kThreads / kFeatures lanes of a warp each.
template <class Element, int kFeatures, int kThreads>
class Shift {
  static constexpr int kLanes = kThreads / kFeatures;
  static_assert(kLanes >= 1 && kLanes <= kShiftSamples && kWarp % kLanes == 0,
                "a feature's lanes lie in one warp");
  using Wide = decltype(widen_element(Element{}));

 public:
  // Starts reading the samples; `write` waits for them.
  PYGUIDE_DEVICE Shift(const Source& x, const char* matrix, int64_t n, int64_t col, bool shifted) {
    const int64_t feature = col + thread_index() / kLanes;
    samples_ = n < kShiftSamples ? int(n) : kShiftSamples;
    inside_ = shifted && feature < x.cols;
    if (!inside_) return;
    const Element* first = reinterpret_cast<const Element*>(matrix) + feature * x.col_stride;
    base_ = first[0];
    const int64_t step = (n < kShiftSamples ? 1 : n / kShiftSamples) * x.row_stride;
    PYGUIDE_UNROLL
    for (int i = 0; i < kShiftSamples / kLanes; ++i) {
      const int r = i * kLanes + thread_index() % kLanes;
      sample_[i] = r < samples_ ? first[r * step] : base_;
    }
  }

  PYGUIDE_DEVICE void write(Element* shift) const {
    const Wide base = inside_ ? widen_element(base_) : Wide(0);
    Wide sum = 0;
    PYGUIDE_UNROLL
    for (int i = 0; i < kShiftSamples / kLanes; ++i) {
      sum += inside_ ? widen_element(sample_[i]) - base : Wide(0);
    }
    PYGUIDE_UNROLL
    for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += ptx::shuffle_xor(sum, mask);
    if (thread_index() % kLanes == 0) {
      narrow_element(base + sum / Wide(samples_), shift[thread_index() / kLanes]);
    }
  }

 private:
  Element base_{};
  Element sample_[kShiftSamples / kLanes] = {};
  int samples_;
  bool inside_;
};

}  // namespace pyguide::cuda
