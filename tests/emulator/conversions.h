// The conversions and packed arithmetic of csrc/cuda/ptx/convert.h, bit for bit.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pyguide::cuda::emulator {

inline uint32_t bits_of(float x) { return bits_from_float(x); }
inline float float_of(uint32_t bits) { return float_from_bits(bits); }

inline uint32_t round_to_tf32(float x) {
  if (x != x) return 0x7fffffffu;
  // The carry out of the largest finite number gives infinity, and infinity has none.
  return (bits_of(x) + 0x1000u) & ~0x1fffu;
}

template <class T>
uint16_t narrowed(float x) {
  T out;
  narrow(x, out);
  return out.bits;
}

template <class T>
uint32_t pack(float first, float second) {
  return uint32_t(narrowed<T>(first)) | uint32_t(narrowed<T>(second)) << 16;
}

inline uint32_t pack_bf16(float first, float second) { return pack<bfloat16>(first, second); }
inline uint32_t pack_f16(float first, float second) { return pack<float16>(first, second); }

inline float float_of_f16(uint16_t bits) { return widen(float16{bits}); }

// A difference that is rounded to float first and then to a format of less than half its digits
// comes out as if it had been rounded once.
template <class T>
uint32_t subtract(uint32_t x, uint32_t y) {
  const auto half = [](uint32_t pair, int shift) { return widen(T{uint16_t(pair >> shift)}); };
  return pack<T>(half(x, 0) - half(y, 0), half(x, 16) - half(y, 16));
}

inline uint32_t subtract_bf16(uint32_t x, uint32_t y) { return subtract<bfloat16>(x, y); }
inline uint32_t subtract_f16(uint32_t x, uint32_t y) { return subtract<float16>(x, y); }

}  // namespace pyguide::cuda::emulator
