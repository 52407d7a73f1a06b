// The entries of the library, one a member of Api (api.h says what each does), and the loading of
// their kernels. The caller has set the device.
#pragma once

#include "cuda/api.h"

namespace pyguide::cuda {

int64_t stat_chunks(int64_t n);

int64_t gram_workspace(const MatrixBatch* layers, int64_t count, int64_t n, Precision precision,
                       int device);
const char* gram(const MatrixBatch* layers, int64_t count, Centering centering,
                 Precision precision, Stack grams, double* stats, Workspace workspace,
                 Target target);
const char* prepare_gram();

int64_t alignment_workspace(int64_t pairs, int64_t tokens, int64_t n);
const char* alignment(Stack grams, const double* stats, Pairs pairs, double* values,
                      uint8_t* degenerate, Workspace workspace, Target target);
const char* coefficients(Stack grams, const double* stats, Pairs pairs, const double* values,
                         const uint8_t* degenerate, const void* grad, DType grad_dtype,
                         const int64_t* wanted, int64_t wanted_count, Stack out, double* bounds,
                         Target target);
const char* prepare_alignment();

const char* apply(Stack coefficients, const double* bounds, const MatrixBatch* layers,
                  const MatrixBatch* outs, int64_t count, bool shifted, Precision precision,
                  Target target);
const char* prepare_apply();

}  // namespace pyguide::cuda
