// What a warp does together, against plain loops. Fragments are laid out by the formulas of the
// PTX ISA, element by element.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/matrix.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/warp.h"
#include "launches.h"

using namespace pyguide::cuda;

namespace {

struct Warp {
  struct Shared {};
  static constexpr int kThreads = 32, kBlocksPerSm = 1;
};

template <class T>
struct Shuffle : Warp {
  struct Params {
    const T* in;
    T* out;  // 32 masks by 32 lanes
  };
  static void run(const Params& params, Shared&) {
    for (int mask = 0; mask < 32; ++mask) {
      params.out[mask * 32 + lane_index()] = ptx::shuffle_xor(params.in[lane_index()], mask);
    }
  }
};

template <class T>
void check_shuffle() {
  T in[32], out[32 * 32];
  for (int lane = 0; lane < 32; ++lane) in[lane] = T(1000 + lane) / T(7);
  succeed<Shuffle<T>>({in, out});
  for (int mask = 0; mask < 32; ++mask) {
    for (int lane = 0; lane < 32; ++lane) {
      CHECK(out[mask * 32 + lane] == in[lane ^ mask], "mask " << mask << " lane " << lane);
    }
  }
}

struct Sum : Warp {
  struct Params {
    const double* in;
    double* out;
  };
  static void run(const Params& params, Shared&) {
    params.out[lane_index()] = ptx::warp_sum(params.in[lane_index()]);
  }
};

struct LoadMatrices {
  struct Params {
    bool transposed;
    uint32_t (*out)[4];
  };
  struct Shared {
    alignas(16) uint16_t matrix[4][8][8];
  };
  static constexpr int kThreads = 32, kBlocksPerSm = 1;
  static void run(const Params& params, Shared& shared) {
    for (int i = lane_index(); i < 256; i += 32) {
      shared.matrix[i / 64][i / 8 % 8][i % 8] = uint16_t(i);
    }
    ptx::block_barrier("filled");
    const void* row = shared.matrix[lane_index() / 8][lane_index() % 8];
    if (params.transposed) {
      ptx::load_matrices_transposed(params.out[lane_index()], row);
    } else {
      ptx::load_matrices(params.out[lane_index()], row);
    }
  }
};

void check_load_matrices(bool transposed) {
  uint32_t out[32][4];
  succeed<LoadMatrices>({transposed, out});
  for (int lane = 0; lane < 32; ++lane) {
    for (int element = 0; element < 8; ++element) {
      const int m = element / 2;
      int row = lane / 4, column = lane % 4 * 2 + element % 2;
      if (transposed) std::swap(row, column);
      const uint16_t value = uint16_t(out[lane][m] >> (element % 2 * 16));
      CHECK(value == m * 64 + row * 8 + column, "lane " << lane << " element " << element);
    }
  }
}

// One mma on operands given as matrices.
struct Product {
  float a[16][16], b[16][8], c[16][8];
};

struct Bf16 {
  static constexpr int kDepth = 16, kPacked = 2, kPrecision = 8;
  static constexpr auto mma = ptx::mma_bf16;
  static uint32_t bits(float x) { return ptx::pack_bf16(x, 0); }
};
struct F16 {
  static constexpr int kDepth = 16, kPacked = 2, kPrecision = 11;
  static constexpr auto mma = ptx::mma_f16;
  static uint32_t bits(float x) { return ptx::pack_f16(x, 0); }
};
struct Tf32 {
  static constexpr int kDepth = 8, kPacked = 1, kPrecision = 11;
  static constexpr auto mma = ptx::mma_tf32;
  static uint32_t bits(float x) { return ptx::bits_of(x) | 0x1abc; }  // the unit ignores these
};

template <class Type>
struct Multiply : Warp {
  struct Params {
    Product* product;
  };
  static void run(const Params& params, Shared&) {
    Product& p = *params.product;
    const int group = lane_index() / 4, member = lane_index() % 4;
    uint32_t a[4] = {}, b[2] = {};
    float c[4];
    for (int i = 0; i < 4 * Type::kPacked; ++i) {
      int row, depth;
      if (Type::kPacked == 2) {
        row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        depth = member * 2 + (i & 1) + (i < 4 ? 0 : 8);
      } else {
        row = i == 0 || i == 2 ? group : group + 8;
        depth = i < 2 ? member : member + 4;
      }
      a[i / Type::kPacked] |= Type::bits(p.a[row][depth]) << (i % Type::kPacked * 16);
    }
    for (int i = 0; i < 2 * Type::kPacked; ++i) {
      const int depth = Type::kPacked == 2 ? member * 2 + (i & 1) + (i < 2 ? 0 : 8)
                                           : (i == 0 ? member : member + 4);
      b[i / Type::kPacked] |= Type::bits(p.b[depth][group]) << (i % Type::kPacked * 16);
    }
    const auto accumulator = [&](int i) -> float& {
      return p.c[i < 2 ? group : group + 8][member * 2 + (i & 1)];
    };
    for (int i = 0; i < 4; ++i) c[i] = accumulator(i);
    Type::mma(c, a, b[0], b[1]);
    for (int i = 0; i < 4; ++i) accumulator(i) = c[i];
  }
};

// Toward zero, by counting in units of the last digit.
float truncated(double x) {
  if (x == 0 || !std::isfinite(x)) return float(x);
  const double unit = std::ldexp(1, std::max(std::ilogb(x), -126) - 23);
  return float(std::trunc(x / unit) * unit);
}

template <class T, int kRows, int kColumns, class Draw>
void fill(T (&matrix)[kRows][kColumns], const Draw& draw) {
  for (auto& row : matrix) {
    for (T& x : row) x = T(draw());
  }
}

template <class Type>
void check_product(double a_scale, double b_scale) {
  std::mt19937 random(2);
  std::uniform_int_distribution<int> digits(-(1 << Type::kPrecision), 1 << Type::kPrecision);
  Product p;
  fill(p.a, [&] { return digits(random) * a_scale; });
  fill(p.b, [&] { return digits(random) * b_scale; });
  fill(p.c, [&] { return digits(random) * 1.37 * a_scale * b_scale; });
  const Product before = p;
  succeed<Multiply<Type>>({&p});
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = before.c[row][column];
      for (int k = 0; k < Type::kDepth; ++k) {
        sum += double(before.a[row][k]) * before.b[k][column];
      }
      CHECK(p.c[row][column] == truncated(sum), row << ", " << column << ": " << sum);
    }
  }
}

// The result of one row and column with these operands and zeros elsewhere.
template <class Type>
float single(std::vector<float> a, std::vector<float> b, float c) {
  Product p{};
  for (size_t k = 0; k < a.size(); ++k) {
    p.a[3][k] = a[k];
    p.b[k][5] = b[k];
  }
  p.c[3][5] = c;
  succeed<Multiply<Type>>({&p});
  return p.c[3][5];
}

template <class Type>
void check_special_values() {
  CHECK(single<Type>({1.5f * 0x1p-12f}, {0x1p-12f}, 1) == 1, "1 + 0.75 ulp is cut off");
  CHECK(single<Type>({-1.5f * 0x1p-12f}, {0x1p-12f}, -1) == -1, "-1 - 0.75 ulp is cut off");
  CHECK(single<Type>({-1}, {0x1p-24f}, 1) == std::nextafter(1.f, 0.f), "1 - 2^-24 is exact");
  CHECK(single<Type>({1, 1}, {0x1p-24f, 0x1p-24f}, 1) == 1 + 0x1p-23f,
        "small products are summed before the sum is cut off");
  CHECK(std::isnan(single<Type>({INFINITY}, {0}, 1)), "inf * 0");
  CHECK(std::isnan(single<Type>({NAN}, {1}, 1)), "NaN");
  CHECK(std::isnan(single<Type>({1}, {1}, NAN)), "NaN in the accumulator");
  CHECK(single<Type>({INFINITY}, {-1}, 1) == -INFINITY, "inf");
  CHECK(single<Type>({0x1p15f}, {0x1p15f}, INFINITY) == INFINITY, "inf in the accumulator");
}

struct MultiplyF64 : Warp {
  struct Params {
    const double (*a)[4];
    const double (*b)[8];
    double (*c)[8];
  };
  static void run(const Params& params, Shared&) {
    const int group = lane_index() / 4, member = lane_index() % 4;
    double c[2] = {params.c[group][member * 2], params.c[group][member * 2 + 1]};
    ptx::mma_f64(c, params.a[group][member], params.b[member][group]);
    for (int i = 0; i < 2; ++i) params.c[group][member * 2 + i] = c[i];
  }
};

}  // namespace

TEST(shuffles_of_every_type) {
  check_shuffle<float>();
  check_shuffle<double>();
  check_shuffle<uint32_t>();
  check_shuffle<int64_t>();
}

TEST(sum_of_a_warp) {
  double in[32], out[32], total = 0;
  for (int lane = 0; lane < 32; ++lane) total += in[lane] = std::ldexp(lane + 1, lane % 5);
  succeed<Sum>({in, out});
  for (const double sum : out) CHECK(sum == total, sum << " and " << total);
}

TEST(load_matrices) { check_load_matrices(false); }
TEST(load_matrices_transposed) { check_load_matrices(true); }

TEST(product_of_bf16) { check_product<Bf16>(1, 1); }
TEST(product_of_f16) { check_product<F16>(1, 1); }
TEST(product_of_tf32) { check_product<Tf32>(1, 1); }
TEST(product_of_subnormal_f16) { check_product<F16>(0x1p-24, 0x1p-24); }
TEST(product_of_subnormal_bf16) { check_product<Bf16>(0x1p-133, 1); }
TEST(subnormal_product_of_bf16) { check_product<Bf16>(0x1p-133, 0x1p-20); }
TEST(subnormal_product_of_tf32) { check_product<Tf32>(0x1p-136, 0x1p-16); }

TEST(special_values_of_bf16) {
  check_special_values<Bf16>();
  CHECK(single<Bf16>({0x1p127f}, {2}, 0) == INFINITY, "overflow");
  CHECK(single<Bf16>({-0x1p127f}, {2}, 0) == -INFINITY, "overflow");
}
TEST(special_values_of_f16) { check_special_values<F16>(); }
TEST(special_values_of_tf32) { check_special_values<Tf32>(); }

TEST(product_of_f64_rounds_as_fma_does) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  double a[8][4], b[4][8], c[8][8], expected[8][8];
  fill(a, [&] { return normal(random); });
  fill(b, [&] { return normal(random); });
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = c[row][column] = normal(random);
      for (int k = 0; k < 4; ++k) sum = std::fma(a[row][k], b[k][column], sum);
      expected[row][column] = sum;
    }
  }
  succeed<MultiplyF64>({a, b, c});
  for (int i = 0; i < 64; ++i) {
    CHECK(c[i / 8][i % 8] == expected[i / 8][i % 8], "element " << i);
  }
}
