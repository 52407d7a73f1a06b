// The library's one symbol: the table of its entries, each of which runs on its target's device.
#include "cuda/api.h"

#include "cuda/devices.h"
#include <initializer_list>

#include "cuda/ops.h"

namespace pyguide::cuda {
namespace {

template <class Call>
const char* on_device(int device, const Call& call) {
  const DeviceGuard guard(device);
  const char* error = guard.error() == nullptr ? call() : guard.error();
  // Else the next launch on this thread would report this error as its own.
  if (error != nullptr) forget_error();
  return error;
}

const char* open_device(int device) {
  return on_device(device, [] {
    for (const auto prepare : {prepare_gram, prepare_alignment, prepare_apply}) {
      if (const char* error = prepare()) return error;
    }
    return static_cast<const char*>(nullptr);
  });
}

const char* gram_on_device(const MatrixBatch* layers, int64_t count, Centering centering,
                           Precision precision, Stack grams, double* stats, Workspace workspace,
                           Target target) {
  return on_device(target.device, [&] {
    return gram(layers, count, centering, precision, grams, stats, workspace, target);
  });
}

const char* alignment_on_device(Stack grams, const double* stats, Pairs pairs, double* values,
                                uint8_t* degenerate, Workspace workspace, Target target) {
  return on_device(target.device, [&] {
    return alignment(grams, stats, pairs, values, degenerate, workspace, target);
  });
}

const char* coefficients_on_device(Stack grams, const double* stats, Pairs pairs,
                                   const double* values, const uint8_t* degenerate,
                                   const void* grad, DType grad_dtype, const int64_t* wanted,
                                   int64_t wanted_count, Stack out, double* bounds,
                                   Target target) {
  return on_device(target.device, [&] {
    return coefficients(grams, stats, pairs, values, degenerate, grad, grad_dtype, wanted,
                        wanted_count, out, bounds, target);
  });
}

const char* apply_on_device(Stack coefficients, const double* bounds, const MatrixBatch* layers,
                            const MatrixBatch* outs, int64_t count, bool shifted,
                            Precision precision, Target target) {
  return on_device(target.device, [&] {
    return apply(coefficients, bounds, layers, outs, count, shifted, precision, target);
  });
}

constexpr Api kApi = {
    kApiVersion,
    device_count,
    device_capability,
    open_device,
    stat_chunks,
    gram_workspace,
    gram_on_device,
    alignment_workspace,
    alignment_on_device,
    coefficients_on_device,
    apply_on_device,
};

}  // namespace
}  // namespace pyguide::cuda

const pyguide::cuda::Api* pyguide_cuda_api() { return &pyguide::cuda::kApi; }
