// The conversions against the definitions of the formats, with the rounding done in double.
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "cuda/ptx/convert.h"

using namespace pyguide::cuda;

namespace {

struct Format {
  int mantissa_bits, min_exponent, max_exponent;
};
constexpr Format kHalf{10, -14, 15}, kBrain{7, -126, 127};

// The format's spacing at x.
double spacing(double x, const Format& format) {
  const int exponent = x == 0 ? format.min_exponent : std::ilogb(x);
  return std::ldexp(1, std::max(exponent, format.min_exponent) - format.mantissa_bits);
}

double rounded_to_even(double x, const Format& format) {
  if (!std::isfinite(x)) return x;
  const double nearest = std::nearbyint(x / spacing(x, format)) * spacing(x, format);
  const bool overflows = std::fabs(nearest) >= std::ldexp(1, format.max_exponent + 1);
  return overflows ? std::copysign(INFINITY, x) : nearest;
}

double decoded(uint16_t bits, const Format& format) {
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int exponent = (bits & 0x7fff) >> format.mantissa_bits;
  double magnitude;
  if (exponent == 0) {
    magnitude = std::ldexp(mantissa, format.min_exponent - format.mantissa_bits);
  } else if (exponent > format.max_exponent - format.min_exponent + 1) {
    magnitude = mantissa ? NAN : INFINITY;
  } else {
    magnitude = std::ldexp(mantissa + (1 << format.mantissa_bits),
                           format.min_exponent - format.mantissa_bits + exponent - 1);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

bool is_same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void check_pairs(const Format& format, float (*widened)(uint16_t),
                 uint32_t (*pack)(float, float)) {
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const double expected = decoded(uint16_t(bits), format);
    CHECK(is_same(widened(uint16_t(bits)), expected), "pattern " << bits);
    if (std::isnan(expected)) continue;
    CHECK(pack(float(expected), 1) >> 16 == pack(0, 1) >> 16, "pattern " << bits);
    CHECK((pack(float(expected), 1) & 0xffff) == uint32_t(bits), "pattern " << bits);
    CHECK(pack(0, float(expected)) == uint32_t(bits) << 16, "pattern " << bits);
    // Between this number and the next: the tie, and the floats beside it.
    const float tie = float(expected + spacing(expected, format) / 2);
    for (const float x : {std::nextafter(tie, -INFINITY), tie, std::nextafter(tie, INFINITY)}) {
      CHECK(is_same(widened(uint16_t(pack(x, 0))), rounded_to_even(x, format)), "float " << x);
    }
  }
  CHECK(std::isnan(widened(uint16_t(pack(NAN, 0)))), "NaN became a number");
}

void check_differences(const Format& format, float (*widened)(uint16_t),
                       uint32_t (*subtract)(uint32_t, uint32_t)) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000000; ++i) {
    const uint32_t x = random(), y = random();
    const uint32_t difference = subtract(x, y);
    for (const int shift : {0, 16}) {
      const double a = decoded(uint16_t(x >> shift), format);
      const double b = decoded(uint16_t(y >> shift), format);
      const double result = widened(uint16_t(difference >> shift));
      CHECK(is_same(result, rounded_to_even(a - b, format)), a << " - " << b << " = " << result);
    }
  }
}

}  // namespace

TEST(pairs_of_f16) { check_pairs(kHalf, ptx::float_of_f16, ptx::pack_f16); }
TEST(pairs_of_bf16) { check_pairs(kBrain, ptx::float_of_bf16, ptx::pack_bf16); }
TEST(differences_of_f16) { check_differences(kHalf, ptx::float_of_f16, ptx::subtract_f16); }
TEST(differences_of_bf16) { check_differences(kBrain, ptx::float_of_bf16, ptx::subtract_bf16); }

TEST(rounding_to_tf32) {
  for (uint32_t high = 0; high < 1u << 19; ++high) {
    for (const uint32_t low : {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
      const float x = ptx::float_of(high << 13 | low);
      const uint32_t bits = ptx::round_to_tf32(x);
      const double result = ptx::float_of(bits);
      CHECK((bits & 0x1fff) == 0 || std::isnan(x), "bits " << bits);
      if (!std::isfinite(x)) {
        CHECK(is_same(x, result), x << " became " << result);
        continue;
      }
      constexpr Format kTf32{10, -126, 127};
      // std::round goes away from zero at a tie.
      const double nearest = std::round(x / spacing(x, kTf32)) * spacing(x, kTf32);
      const bool overflows = std::fabs(nearest) >= 0x1p128;
      CHECK(is_same(result, overflows ? std::copysign(INFINITY, x) : nearest), "float " << x);
    }
  }
}
