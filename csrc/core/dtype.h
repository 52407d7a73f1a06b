// Element types of the tensors that the kernels read and write, and their conversions.
//
// Every function here has internal linkage: the kernel units are compiled with wider
// instruction sets than the rest, and the linker must never keep their copy for everybody.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyguide {

enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

[[maybe_unused]] static inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Widening. Exact for every 16-bit pattern; written without branches so that loops vectorise.
[[maybe_unused]] static inline double widen(double x) { return x; }
[[maybe_unused]] static inline float widen(float x) { return x; }
[[maybe_unused]] static inline float widen(bfloat16 x) {
  return float_from_bits(uint32_t(x.bits) << 16);
}
[[maybe_unused]] static inline float widen(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;  // the exponent biases differ by 112
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  // Subnormals are multiples of 2^-24, the spacing of floats at 0.5. No operand is a subnormal
  // float, which a thread with denormals flushed would read as 0.
  const uint32_t subnormal = bits_from_float(float_from_bits(0x3f000000u | magnitude) - 0.5f);
  uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
  bits = magnitude >= 0x7c00u ? special : bits;
  return float_from_bits(sign | bits);
}

// Narrowing, rounding to nearest even.
[[maybe_unused]] static inline void narrow(double x, double& out) { out = x; }
[[maybe_unused]] static inline void narrow(double x, float& out) { out = float(x); }
[[maybe_unused]] static inline void narrow(float x, float& out) { out = x; }
[[maybe_unused]] static inline void narrow(float x, double& out) { out = x; }
[[maybe_unused]] static inline void narrow(float x, bfloat16& out) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
[[maybe_unused]] static inline void narrow(float x, float16& out) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 half is a fixed-point grid of 2^-24: adding 0.5 rounds float to that grid.
  const uint32_t subnormal =
      bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f);
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = half > 0x7c00u || magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  out.bits = uint16_t(sign | half);
}
[[maybe_unused]] static inline void narrow(double x, bfloat16& out) { narrow(float(x), out); }
[[maybe_unused]] static inline void narrow(double x, float16& out) { narrow(float(x), out); }

}  // namespace pyguide
