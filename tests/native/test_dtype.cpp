// Conversions of 16-bit types, for every pattern and every boundary of rounding.
#include <cmath>
#include <limits>

#include "check.h"
#include "core/dtype.h"

using pyguide::bfloat16;
using pyguide::float16;

namespace {

struct Format {
  int exponent_bits, mantissa_bits;
  int max_exponent() const { return (1 << exponent_bits) - 1; }
};
constexpr Format kHalf{5, 10}, kBrain{8, 7};

// A pattern's value by the definition of the format. The largest exponent is read as a number too:
// it is what the largest finite numbers would round to if the format went on.
double decode(uint16_t bits, const Format& format) {
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int exponent = (bits >> format.mantissa_bits) & format.max_exponent();
  const int bias = format.max_exponent() / 2;
  const int unit = 1 - bias - format.mantissa_bits;  // of the subnormal numbers, as a power of 2
  const int implicit = 1 << format.mantissa_bits;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, unit)
                                         : std::ldexp(mantissa + implicit, unit + exponent - 1);
  return bits & 0x8000 ? -magnitude : magnitude;
}

bool is_finite(uint16_t bits, const Format& format) {
  return ((bits >> format.mantissa_bits) & format.max_exponent()) != format.max_exponent();
}

template <class T>
uint16_t narrowed(double value) {
  T out;
  pyguide::narrow(float(value), out);
  return out.bits;
}

template <class T>
void check_every_pattern(const Format& format) {
  for (int pattern = 0; pattern < 1 << 16; ++pattern) {
    const T x{uint16_t(pattern)};
    const float wide = pyguide::widen(x);
    const bool mantissa = pattern & ((1 << format.mantissa_bits) - 1);
    if (is_finite(x.bits, format)) {
      CHECK(double(wide) == decode(x.bits, format), "pattern " << pattern);
      CHECK(std::signbit(wide) == bool(pattern & 0x8000), "pattern " << pattern);
    } else {
      CHECK(mantissa ? std::isnan(wide) : std::isinf(wide), "pattern " << pattern);
    }
    const uint16_t back = narrowed<T>(double(wide));
    if (std::isnan(wide)) {
      CHECK(std::isnan(pyguide::widen(T{back})), "pattern " << pattern);
    } else {
      CHECK(back == x.bits, "pattern " << pattern << " came back as " << back);
    }
  }
}

// Between neighbours: ties go to the even one, everything else to the nearer one.
template <class T>
void check_rounding(const Format& format) {
  for (int pattern = 0; is_finite(uint16_t(pattern), format); ++pattern) {
    for (int sign : {0, 0x8000}) {
      const uint16_t low = uint16_t(pattern | sign), high = uint16_t(low + 1);
      const float tie = float((decode(low, format) + decode(high, format)) / 2);
      const float outwards = std::copysign(std::numeric_limits<float>::infinity(), tie);
      CHECK(narrowed<T>(tie) == (pattern % 2 == 0 ? low : high), "tie above " << low);
      CHECK(narrowed<T>(std::nextafter(tie, 0.0f)) == low, "below the tie above " << low);
      CHECK(narrowed<T>(std::nextafter(tie, outwards)) == high, "above the tie above " << low);
    }
  }
}

}  // namespace

TEST(every_float16) { check_every_pattern<float16>(kHalf); }
TEST(every_bfloat16) { check_every_pattern<bfloat16>(kBrain); }
TEST(rounding_to_float16) { check_rounding<float16>(kHalf); }
TEST(rounding_to_bfloat16) { check_rounding<bfloat16>(kBrain); }

TEST(overflow_of_16_bit_types) {
  for (float value : {1e30f, 3.4e38f, std::numeric_limits<float>::infinity()}) {
    CHECK(narrowed<float16>(value) == 0x7c00, value);
    CHECK(narrowed<float16>(-value) == 0xfc00, value);
  }
  CHECK(narrowed<bfloat16>(std::numeric_limits<float>::max()) == 0x7f80, "the largest float");
  CHECK(narrowed<bfloat16>(std::numeric_limits<float>::infinity()) == 0x7f80, "infinity");
}
