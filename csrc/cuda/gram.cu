// Gram matrices of many ragged layers: plans the work and starts gram_partial and gram_finish.
#include <algorithm>
#include <vector>

#include "core/rounding.h"
#include "cuda/device_properties.h"
#include "cuda/gram_finish.h"
#include "cuda/gram_partial.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace pyguide::cuda {
namespace {

enum class Kind { kFloat64, kFloat32In64, kTf32x3, kTf32, kRounded, kBFloat16, kFloat16 };

// As on the CPU: the debiased estimator cancels most of a sum of few samples.
constexpr int64_t kFewSamples = 16;

Kind kind_of(DType dtype, int64_t n, Precision precision) {
  switch (dtype) {
    case DType::kFloat64:
      return Kind::kFloat64;
    case DType::kBFloat16:
      return Kind::kBFloat16;
    case DType::kFloat16:
      return Kind::kFloat16;
    case DType::kFloat32:
      break;
  }
  if (precision == Precision::kHigh) return Kind::kTf32;
  if (precision == Precision::kMedium) return Kind::kRounded;
  return n <= kFewSamples ? Kind::kFloat32In64 : Kind::kTf32x3;
}

bool sums_in_double(Kind kind) { return kind == Kind::kFloat64 || kind == Kind::kFloat32In64; }

int side_of(Kind kind, int64_t n) { return sums_in_double(kind) || n <= 64 ? 64 : 128; }

int64_t features_of_slab(DType dtype) { return 128 / size_of(dtype); }

// Features that one block sums at most: 128 chains, added to single-precision totals.
constexpr int64_t kMaxFeatures = 1 << 16;
// Slabs below which writing a tile of partial sums costs more than reading its part of X.
constexpr int64_t kMinSlabs = 4;

struct LayerPlan {
  int64_t layer;
  int64_t splits;
  int64_t items;
};

// Layers that one launch multiplies.
struct Group {
  Kind kind;
  int side;
  std::vector<LayerPlan> layers;
  int64_t items = 0;
  int64_t item_bytes() const {
    return int64_t(side) * side * (sums_in_double(kind) ? 8 : 4) + 2 * side * 8;
  }
};

int64_t tokens_of(const MatrixBatch* layers) { return layers[0].count; }

// Cuts the layers' features into ranges of equal work, enough of them to fill the device.
void split_features(Group& group, const MatrixBatch* layers, int64_t n, int multiprocessors) {
  const int64_t tiles = triangle(ceil_div(n, group.side));
  double work = 0;
  auto slabs_of = [&](int64_t l) {
    return ceil_div(layers[l].first.cols, features_of_slab(layers[l].first.dtype));
  };
  for (const LayerPlan& plan : group.layers) {
    work += double(slabs_of(plan.layer)) * double(tiles) * double(layers[plan.layer].count);
  }
  const double wanted = double(multiprocessors) * (group.side == 128 ? 4 : 8);
  const int64_t most = kMaxFeatures / features_of_slab(layers[group.layers[0].layer].first.dtype);
  const int64_t slabs =
      std::clamp(int64_t(work / wanted) + 1, std::min(kMinSlabs, most), most);
  for (LayerPlan& plan : group.layers) {
    plan.splits = ceil_div(slabs_of(plan.layer), slabs);
    plan.items = plan.splits * tiles * layers[plan.layer].count;
    group.items += plan.items;
  }
}

std::vector<Group> groups_of(const MatrixBatch* layers, int64_t count, int64_t n,
                             Precision precision, int multiprocessors) {
  std::vector<Group> groups;
  for (int64_t l = 0; l < count; ++l) {
    const Kind kind = kind_of(layers[l].first.dtype, n, precision);
    auto fits = [&](const Group& group) {
      return group.kind == kind && group.layers.size() < size_t(kMaxLayers);
    };
    auto group = std::find_if(groups.begin(), groups.end(), fits);
    if (group == groups.end()) {
      groups.push_back({kind, side_of(kind, n), {}});
      group = groups.end() - 1;
    }
    group->layers.push_back({l, 0, 0});
  }
  for (Group& group : groups) split_features(group, layers, n, multiprocessors);
  return groups;
}

int64_t offset_doubles(int64_t n, int64_t matrices) {
  return n > kCentredInBlock ? (n + 1) * matrices : 0;
}

int64_t workspace_bytes(const std::vector<Group>& groups, int64_t n, int64_t matrices) {
  int64_t bytes = offset_doubles(n, matrices) * 8;
  for (const Group& group : groups) bytes += group.items * group.item_bytes();
  return bytes;
}

template <template <class, int> class Use, class... Arguments>
const char* with_kernel(Kind kind, int side, Arguments&&... arguments) {
  switch (kind) {
    case Kind::kFloat64:
      return Use<Float64Kind<double>, 64>::call(arguments...);
    case Kind::kFloat32In64:
      return Use<Float64Kind<float>, 64>::call(arguments...);
    case Kind::kTf32x3:
      return side == 64 ? Use<Tf32x3Kind, 64>::call(arguments...)
                        : Use<Tf32x3Kind, 128>::call(arguments...);
    case Kind::kTf32:
      return side == 64 ? Use<Tf32Kind, 64>::call(arguments...)
                        : Use<Tf32Kind, 128>::call(arguments...);
    case Kind::kRounded:
      return side == 64 ? Use<RoundedKind, 64>::call(arguments...)
                        : Use<RoundedKind, 128>::call(arguments...);
    case Kind::kBFloat16:
      return side == 64 ? Use<BFloat16Kind, 64>::call(arguments...)
                        : Use<BFloat16Kind, 128>::call(arguments...);
    case Kind::kFloat16:
      return side == 64 ? Use<Float16Kind, 64>::call(arguments...)
                        : Use<Float16Kind, 128>::call(arguments...);
  }
  return "unknown kind of product";
}

template <class Product, int kSide>
struct LaunchPartial {
  static const char* call(const Group& group, const GramPartialParams& params, void* stream) {
    return launch<GramPartial<Product, kSide>>(group.items, params, stream);
  }
};

template <class Product, int kSide>
struct PreparePartial {
  static const char* call() { return prepare<GramPartial<Product, kSide>>(); }
};

// One launch of gram_partial. Fills in where gram_finish finds each layer's partial sums.
const char* multiply(const Group& group, const MatrixBatch* layers, int64_t n, bool shifted,
                     char* workspace, std::vector<GramFinishParams::Layer>& finish,
                     void* stream) {
  if (group.items > INT32_MAX) return "too many tiles for one launch: compare fewer tokens a call";
  GramPartialParams params;
  params.n = n;
  params.row_sums = reinterpret_cast<double*>(workspace);
  params.partial = workspace + group.items * 2 * group.side * 8;
  params.layers = int32_t(group.layers.size());
  params.tiles = int32_t(ceil_div(n, group.side));
  params.shifted = shifted;
  const bool in_double = sums_in_double(group.kind);
  const int64_t tile_bytes = int64_t(group.side) * group.side * (in_double ? 8 : 4);
  int64_t item = 0;
  for (size_t i = 0; i < group.layers.size(); ++i) {
    const LayerPlan& plan = group.layers[i];
    params.layer[i] = {source_of(layers[plan.layer]), int32_t(item), int32_t(plan.splits)};
    finish[plan.layer] = {params.partial + item * tile_bytes,
                          params.row_sums + item * 2 * group.side, int32_t(plan.splits),
                          group.side, in_double};
    item += plan.items;
  }
  return with_kernel<LaunchPartial>(group.kind, group.side, group, params, stream);
}

const char* finish_layers(GramFinishParams& params, DType dtype, void* stream) {
  const int64_t matrices = int64_t(params.layers) * params.tokens;
  if (params.centering != Centering::kNone && params.n > kCentredInBlock) {
    if (const char* error = launch<GramOffsets>(matrices, params, stream)) return error;
  }
  const int64_t blocks = matrices * params.chunks;
  return dtype == DType::kFloat64 ? launch<GramFinish<double>>(blocks, params, stream)
                                  : launch<GramFinish<float>>(blocks, params, stream);
}

}  // namespace

int64_t stat_chunks(int64_t n) {
  return std::min<int64_t>(triangle(ceil_div(n, kSquare)), kMaxStatChunks);
}

int64_t gram_workspace(const MatrixBatch* layers, int64_t count, int64_t n, Precision precision,
                       int device) {
  return workspace_bytes(groups_of(layers, count, n, precision, multiprocessors(device)), n,
                         count * tokens_of(layers));
}

const char* gram(const MatrixBatch* layers, int64_t count, Centering centering,
                 Precision precision, Stack grams, double* stats, Workspace workspace,
                 Target target) {
  const int64_t n = grams.n, tokens = tokens_of(layers);
  const auto groups = groups_of(layers, count, n, precision, multiprocessors(target.device));
  if (workspace.bytes < workspace_bytes(groups, n, count * tokens)) {
    return "gram: the workspace is too small";
  }
  char* free = static_cast<char*>(workspace.data);
  double* offsets = reinterpret_cast<double*>(free);
  free += offset_doubles(n, count * tokens) * 8;
  std::vector<GramFinishParams::Layer> finish(count);
  for (const Group& group : groups) {
    const bool shifted = centering != Centering::kNone;
    if (const char* error =
            multiply(group, layers, n, shifted, free, finish, target.stream)) {
      return error;
    }
    free += group.items * group.item_bytes();
  }
  GramFinishParams params;
  params.n = n;
  params.tokens = int32_t(tokens);
  params.chunks = int32_t(stat_chunks(n));
  params.centering = centering;
  for (int64_t first = 0; first < count; first += kMaxLayers) {
    params.layers = int32_t(std::min<int64_t>(kMaxLayers, count - first));
    const int64_t matrix = first * tokens;
    params.grams = static_cast<char*>(grams.data) + matrix * n * n * size_of(grams.dtype);
    params.stats = stats == nullptr ? nullptr : stats + matrix * params.chunks * 2;
    params.offsets = offsets + (n > kCentredInBlock ? matrix * (n + 1) : 0);
    std::copy_n(finish.begin() + first, params.layers, params.layer);
    if (const char* error = finish_layers(params, grams.dtype, target.stream)) return error;
  }
  return nullptr;
}

const char* prepare_gram() {
  for (Kind kind : {Kind::kFloat64, Kind::kFloat32In64, Kind::kTf32x3, Kind::kTf32,
                    Kind::kRounded, Kind::kBFloat16, Kind::kFloat16}) {
    for (int side : {64, 128}) {
      if (const char* error = with_kernel<PreparePartial>(kind, side)) return error;
    }
  }
  if (const char* error = prepare<GramOffsets>()) return error;
  if (const char* error = prepare<GramFinish<float>>()) return error;
  return prepare<GramFinish<double>>();
}

}  // namespace pyguide::cuda
