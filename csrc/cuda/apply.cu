// Gradients of many ragged layers: starts the kernels of apply.h.
#include "cuda/apply.h"

#include <algorithm>
#include <vector>

#include "core/rounding.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace pyguide::cuda {
namespace {

enum class Kind {
  kFloat64,
  kFloat64ByFloat32,
  kTf32x3,
  kTf32,
  kRounded,
  kBFloat16,
  kFloat16
};
constexpr Kind kKinds[] = {Kind::kFloat64, Kind::kFloat64ByFloat32, Kind::kTf32x3, Kind::kTf32,
                           Kind::kRounded, Kind::kBFloat16,         Kind::kFloat16};

Kind kind_of(DType dtype, DType coefficients, Precision precision) {
  switch (dtype) {
    case DType::kFloat64:
      return coefficients == DType::kFloat64 ? Kind::kFloat64 : Kind::kFloat64ByFloat32;
    case DType::kBFloat16:
      return Kind::kBFloat16;
    case DType::kFloat16:
      return Kind::kFloat16;
    case DType::kFloat32:
      break;
  }
  if (precision == Precision::kHigh) return Kind::kTf32;
  return precision == Precision::kMedium ? Kind::kRounded : Kind::kTf32x3;
}

// Samples that one chain of single-precision sums may hold.
constexpr int64_t kChainSamples = 512;

enum class Size { kSmall, kLarge, kChained };

Size size_for(Kind kind, int64_t n) {
  if (n <= 64 || kind == Kind::kFloat64 || kind == Kind::kFloat64ByFloat32) return Size::kSmall;
  return n <= kChainSamples ? Size::kLarge : Size::kChained;
}

int64_t side_of(Size size) { return size == Size::kSmall ? 64 : 128; }

template <template <class> class Use, class Product, class... Arguments>
const char* with_size(Size size, Arguments&&... arguments) {
  switch (size) {
    case Size::kSmall:
      return Use<Apply<Product, 64, false>>::call(arguments...);
    case Size::kLarge:
      return Use<Apply<Product, 128, false>>::call(arguments...);
    case Size::kChained:
      return Use<Apply<Product, 128, true>>::call(arguments...);
  }
  return "unknown size of tile";
}

template <template <class> class Use, class... Arguments>
const char* with_kernel(Kind kind, Size size, Arguments&&... arguments) {
  switch (kind) {
    case Kind::kFloat64:
      return Use<Apply<ApplyFloat64<double>, 64, false>>::call(arguments...);
    case Kind::kFloat64ByFloat32:
      return Use<Apply<ApplyFloat64<float>, 64, false>>::call(arguments...);
    case Kind::kTf32x3:
      return with_size<Use, ApplyTf32x3>(size, arguments...);
    case Kind::kTf32:
      return with_size<Use, ApplyTf32>(size, arguments...);
    case Kind::kRounded:
      return with_size<Use, ApplyRounded>(size, arguments...);
    case Kind::kBFloat16:
      return with_size<Use, ApplyBFloat16>(size, arguments...);
    case Kind::kFloat16:
      return with_size<Use, ApplyFloat16>(size, arguments...);
  }
  return "unknown kind of product";
}

template <class Kernel>
struct Launch {
  static const char* call(int64_t blocks, const ApplyParams& params, void* stream) {
    return launch<Kernel>(blocks, params, stream);
  }
};

template <class Kernel>
struct Prepare {
  static const char* call() { return prepare<Kernel>(); }
};

// Layers of one kind, which a launch takes together.
class Launches {
 public:
  Launches(ApplyParams& params, Kind kind, Size size, void* stream)
      : params_(params), kind_(kind), size_(size), stream_(stream) {}

  const char* add(const MatrixBatch& x, const MatrixBatch& out, int64_t first_matrix) {
    const int64_t tiles = ceil_div(x.first.cols, side_of(size_)) * params_.row_tiles;
    const int64_t items = tiles * x.count;
    if (items_ + items > INT32_MAX || params_.layers == kMaxLayers) {
      if (const char* error = flush()) return error;
    }
    if (items > INT32_MAX) return "too many tiles for one launch: compare fewer tokens a call";
    params_.layer[params_.layers++] = {source_of(x),
                                       static_cast<char*>(out.first.data),
                                       out.first.row_stride,
                                       out.first.col_stride,
                                       out.stride,
                                       int32_t(items_),
                                       int32_t(first_matrix)};
    items_ += items;
    return nullptr;
  }

  const char* flush() {
    if (params_.layers == 0) return nullptr;
    const char* error = with_kernel<Launch>(kind_, size_, items_, params_, stream_);
    items_ = params_.layers = 0;
    return error;
  }

 private:
  ApplyParams& params_;
  Kind kind_;
  Size size_;
  void* stream_;
  int64_t items_ = 0;
};

MatrixBatch batch_of(const Stack& stack) {
  const MatrixView first{stack.data, stack.dtype, stack.n, stack.n, stack.row_stride, 1};
  return {first, stack.matrices, stack.n * stack.row_stride};
}

}  // namespace

const char* apply(Stack coefficients, const double* bounds, const MatrixBatch* layers,
                  const MatrixBatch* outs, int64_t count, bool shifted, Precision precision,
                  Target target) {
  ApplyParams params;
  params.coefficients = source_of(batch_of(coefficients));
  params.bounds = bounds;
  params.n = coefficients.n;
  params.shifted = shifted;
  params.layers = 0;
  for (Kind kind : kKinds) {
    const Size size = size_for(kind, params.n);
    params.row_tiles = int32_t(ceil_div(params.n, side_of(size)));
    Launches launches(params, kind, size, target.stream);
    int64_t matrix = 0;
    for (int64_t l = 0; l < count; matrix += layers[l++].count) {
      if (kind_of(layers[l].first.dtype, coefficients.dtype, precision) != kind) continue;
      if (const char* error = launches.add(layers[l], outs[l], matrix)) return error;
    }
    if (const char* error = launches.flush()) return error;
  }
  return nullptr;
}

const char* prepare_apply() {
  for (Kind kind : kKinds) {
    for (Size size : {Size::kSmall, Size::kLarge, Size::kChained}) {
      if (const char* error = with_kernel<Prepare>(kind, size)) return error;
    }
  }
  return nullptr;
}

}  // namespace pyguide::cuda
