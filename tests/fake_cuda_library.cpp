// A CUDA library of interface VERSION on a machine whose devices have CAPABILITIES. Its entries
// only say that they were reached.
#include "cuda/api.h"

namespace {

using namespace pyguide;
using namespace pyguide::cuda;

constexpr int kCapabilities[] = {CAPABILITIES};
constexpr int kDevices = sizeof kCapabilities / sizeof kCapabilities[0];

int device_count(const char**) { return kDevices; }

const char* device_capability(int device, int* capability) {
  if (device >= kDevices) return "invalid device ordinal";
  *capability = kCapabilities[device];
  return nullptr;
}

const char* open_device(int) { return "this GPU is out of memory"; }

int64_t stat_chunks(int64_t n) { return n; }

int64_t gram_workspace(const MatrixBatch*, int64_t count, int64_t, Precision, int) {
  return count;
}

const char* gram(const MatrixBatch*, int64_t, Centering, Precision, Stack, double*, Workspace,
                 Target) {
  return "gram was reached";
}

int64_t alignment_workspace(int64_t pairs, int64_t tokens, int64_t) { return pairs * tokens; }

const char* alignment(Stack, const double*, Pairs, double*, uint8_t*, Workspace, Target) {
  return "alignment was reached";
}

const char* coefficients(Stack, const double*, Pairs, const double*, const uint8_t*, const void*,
                         DType, const int64_t*, int64_t, Stack, double*, Target) {
  return "coefficients was reached";
}

const char* apply(Stack, const double*, const MatrixBatch*, const MatrixBatch*, int64_t, bool,
                  Precision, Target) {
  return "apply was reached";
}

constexpr Api kApi = {VERSION,        device_count, device_capability,   open_device, stat_chunks,
                      gram_workspace, gram,         alignment_workspace, alignment,   coefficients,
                      apply};

}  // namespace

const Api* pyguide_cuda_api() { return &kApi; }
