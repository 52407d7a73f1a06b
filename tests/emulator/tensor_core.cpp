// mma.sync. Products are exact; they and the accumulator are summed in double and the sum is cut
// off to float: the hardware truncates too, in an order and to a width that are not documented.
#include <cmath>
#include <cstring>

#include "emulator.h"

namespace pyguide::cuda::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8;

float truncated(double x) {
  constexpr double kOverflow = 0x1p128;
  const float nearest = float(x);
  if (!(std::fabs(x) < kOverflow)) return nearest;  // infinity stays, and too large becomes it
  const bool is_farther = std::fabs(double(nearest)) > std::fabs(x);
  return float_from_bits(bits_from_float(nearest) - is_farther);
}

template <class T>
double operand(uint32_t bits) {
  return widen(T{uint16_t(bits)});
}

struct tf32 {};

template <>
double operand<tf32>(uint32_t bits) {
  return float_from_bits(bits & ~0x1fffu);
}

// The operands of one instruction as plain matrices.
template <class T, int kDepth>
struct Operands {
  // A fragment register holds one 32-bit element or two 16-bit ones that follow each other.
  static constexpr int kPacked = std::is_same_v<T, tf32> ? 1 : 2;

  double a[kRows][kDepth], b[kDepth][kColumns];

  explicit Operands(void* const* arguments) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const auto& mine = *static_cast<const MmaArguments*>(arguments[lane]);
      const int group = lane / 4, depth = lane % 4 * kPacked;
      for (int i = 0; i < kPacked; ++i) {
        for (int half = 0; half < 2; ++half) {
          const int k = depth + half * kDepth / 2 + i;
          a[group][k] = operand<T>(mine.a[2 * half] >> 16 * i);
          a[group + 8][k] = operand<T>(mine.a[2 * half + 1] >> 16 * i);
          b[k][group] = operand<T>(mine.b[half] >> 16 * i);
        }
      }
    }
  }
};

template <class T, int kDepth>
void run_mma(void* const* arguments) {
  const Operands<T, kDepth> operands(arguments);
  double sum[kRows][kColumns];
  const auto c = [&](int lane) { return static_cast<const MmaArguments*>(arguments[lane])->c; };
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 4; ++i) sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = c(lane)[i];
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < kColumns; ++column) {
        sum[row][column] += operands.a[row][k] * operands.b[k][column];
      }
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      c(lane)[i] = truncated(sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
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
