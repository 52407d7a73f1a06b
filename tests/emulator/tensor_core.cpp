// mma.sync. Products are exact; they and the accumulator are summed in double and the sum is cut
// off to float: the hardware truncates too, in an order and to a width that are not documented.
#include <cmath>
#include <cstring>

#include "emulator.h"

namespace pyguide::cuda::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8, kMaxDepth = 16;

struct tf32 {
  uint32_t bits;
};

double widened(tf32 x) { return float_from_bits(x.bits & ~0x1fffu); }
double widened(bfloat16 x) { return widen(x); }
double widened(float16 x) { return widen(x); }

float truncated(double x) {
  if (std::fabs(x) < 0x1p-126) {  // subnormal
    const float nearest = float(x);
    const bool is_farther = std::fabs(double(nearest)) > std::fabs(x);
    return float_from_bits(bits_from_float(nearest) - is_farther);
  }
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  bits &= ~uint64_t(0x1fffffff);  // the digits that a float lacks
  std::memcpy(&x, &bits, 8);
  return float(x);
}

// GCC keeps vectors of this size in registers; where the machine has none it splits them.
typedef double Vector __attribute__((vector_size(32)));
constexpr int kVectors = kColumns * sizeof(double) / sizeof(Vector);

// The operands of one instruction as matrices, and its accumulators.
struct Matrices {
  double a[kRows][kMaxDepth];
  union {
    double b[kMaxDepth][kColumns];
    Vector b_vectors[kMaxDepth][kVectors];
  };
  union {
    double c[kRows][kColumns];
    Vector c_vectors[kRows][kVectors];
  };
};

// Compiled for two instruction sets; the results are the same, because products are exact.
#ifdef __x86_64__
__attribute__((target_clones("fma", "default")))
#endif
void multiply(Matrices& m, int depth) {
  for (int row = 0; row < kRows; ++row) {
    Vector sum[kVectors] = {m.c_vectors[row][0], m.c_vectors[row][1]};
    for (int k = 0; k < depth; ++k) {
      for (int i = 0; i < kVectors; ++i) sum[i] += m.a[row][k] * m.b_vectors[k][i];
    }
    for (int i = 0; i < kVectors; ++i) m.c_vectors[row][i] = sum[i];
  }
}

template <class T, int kDepth>
void gather(void* const* arguments, Matrices& m) {
  // A register holds one 32-bit element, or two 16-bit ones that follow each other in depth.
  constexpr int kPacked = 4 / sizeof(T);
  T a[kRows][kDepth], b[kDepth][kColumns];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& mine = *static_cast<const MmaArguments*>(arguments[lane]);
    const int group = lane / 4, k = lane % 4 * kPacked;
    for (int half = 0; half < 2; ++half) {
      std::memcpy(&a[group][k + half * kDepth / 2], &mine.a[2 * half], 4);
      std::memcpy(&a[group + 8][k + half * kDepth / 2], &mine.a[2 * half + 1], 4);
      T elements[kPacked];
      std::memcpy(elements, &mine.b[half], 4);
      for (int i = 0; i < kPacked; ++i) b[k + half * kDepth / 2 + i][group] = elements[i];
    }
    for (int i = 0; i < 4; ++i) m.c[group + i / 2 * 8][lane % 4 * 2 + i % 2] = mine.c[i];
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) m.a[row][k] = widened(a[row][k]);
  }
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < kColumns; ++column) m.b[k][column] = widened(b[k][column]);
  }
}

template <class T, int kDepth>
void run_mma(void* const* arguments) {
  Matrices m;
  gather<T, kDepth>(arguments, m);
  multiply(m, kDepth);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    float* c = static_cast<const MmaArguments*>(arguments[lane])->c;
    for (int i = 0; i < 4; ++i) c[i] = truncated(m.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

void run_mma_f64(void* const* arguments) {
  const auto of_lane = [&](int lane) { return static_cast<MmaF64Arguments*>(arguments[lane]); };
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4, column = lane % 4 * 2 + i;
      double& sum = of_lane(lane)->c[i];
      for (int k = 0; k < 4; ++k) {
        sum = std::fma(of_lane(row * 4 + k)->a, of_lane(column * 4 + k)->b, sum);
      }
    }
  }
}

}  // namespace

const Collective kMmaBf16{"mma_bf16", run_mma<bfloat16, 16>};
const Collective kMmaF16{"mma_f16", run_mma<float16, 16>};
const Collective kMmaTf32{"mma_tf32", run_mma<tf32, 8>};
const Collective kMmaF64{"mma_f64", run_mma_f64};

}  // namespace pyguide::cuda::emulator
