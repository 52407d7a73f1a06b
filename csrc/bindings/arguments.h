// How Python hands over tensors: addresses and sizes as integers, checked before they are used.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/checks.h"
#include "core/matrix_view.h"

namespace pyguide::bindings {

// (pointer, dtype, rows, cols, row stride, column stride, tokens, token stride), as
// pyguide/ops/views.py makes it.
using ViewTuple = std::array<int64_t, 8>;

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

template <class T>
T* array(int64_t address, const char* name) {
  T* data = pointer<T>(address);
  check_array(data, name, alignof(T));
  return data;
}

// One batch a layer; all have as many tokens. `check` is check_layer or check_output.
inline std::vector<MatrixBatch> batches_from(const std::vector<ViewTuple>& tuples, int64_t n,
                                             void (*check)(const MatrixBatch&, int64_t)) {
  std::vector<MatrixBatch> batches;
  batches.reserve(tuples.size());
  for (const ViewTuple& t : tuples) {
    const MatrixView first{pointer<void>(t[0]), dtype_from(t[1]), t[2], t[3], t[4], t[5]};
    batches.push_back({first, t[6], t[7]});
    check(batches.back(), n);
    // The caller's stack has as many matrices as layers times the first one's tokens.
    require(batches.back().count == batches.front().count, "layers differ in tokens");
  }
  return batches;
}

// Pairs of layers of a stack of `matrices`, which holds `tokens` of every layer.
inline void check_pairs(const std::vector<int64_t>& left, const std::vector<int64_t>& right,
                        int64_t matrices, int64_t tokens) {
  require(left.size() == right.size(), "left and right differ in length");
  require(tokens >= 1, "tokens must be positive");
  require(matrices % tokens == 0, "a stack holds as many tokens of every layer");
  check_indices(left, matrices / tokens, "a pair index is out of range");
  check_indices(right, matrices / tokens, "a pair index is out of range");
}

// A layer and its output; both come from batches_from().
inline void check_matched(const std::vector<MatrixBatch>& layers,
                          const std::vector<MatrixBatch>& outs) {
  require(layers.size() == outs.size(), "layers and outs differ in length");
  for (size_t l = 0; l < layers.size(); ++l) {
    require(layers[l].count == outs[l].count, "layers and outs differ in tokens");
    require(layers[l].first.cols == outs[l].first.cols,
            "a layer and its output differ in features");
  }
}

}  // namespace pyguide::bindings
