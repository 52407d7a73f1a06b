// Argument checks that come before any kernel. Each throws std::invalid_argument and says what
// was wrong; sizes that pass cannot overflow int64 in the kernels' index arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.h"

namespace pyguide {

void require(bool condition, const char* what);

DType dtype_from(int64_t code);
Centering centering_from(int64_t code);

void check_threads(int threads);

// A pointer that is not null and is aligned to elements of `size` bytes.
void check_array(const void* data, const char* name, int64_t size);

// A layer: one or more n x d matrices with n = `n` and d >= 1; every element lies in the address
// space.
void check_layer(const MatrixBatch& x, int64_t n);

// A layer's gradient: like a layer, and no two elements share an address.
void check_output(const MatrixBatch& out, int64_t n);

// A stack of `layers` n x n matrices, rows `row_stride` elements apart and without other gaps.
void check_stack(const void* data, const char* name, DType dtype, int64_t layers, int64_t n,
                 int64_t row_stride);

// Each index lies in [0, count).
void check_indices(const std::vector<int64_t>& indices, int64_t count, const char* what);

}  // namespace pyguide
