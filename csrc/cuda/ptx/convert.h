// Conversions and packed arithmetic of the tensor cores' operand types. A packed pair holds its
// first element in the low half.
#pragma once

#include "cuda/device.h"

namespace pyguide::cuda::ptx {

PYGUIDE_DEVICE uint32_t bits_of(float x) {
#ifdef PYGUIDE_EMULATED
  return emulator::bits_of(x);
#else
  return __float_as_uint(x);
#endif
}

PYGUIDE_DEVICE float float_of(uint32_t bits) {
#ifdef PYGUIDE_EMULATED
  return emulator::float_of(bits);
#else
  return __uint_as_float(bits);
#endif
}

// float32 bits rounded to tf32: to nearest, ties away from zero.
PYGUIDE_DEVICE uint32_t round_to_tf32(float x) {
#ifdef PYGUIDE_EMULATED
  return emulator::round_to_tf32(x);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// Two floats rounded to nearest even and packed.
PYGUIDE_DEVICE uint32_t pack_bf16(float first, float second) {
#ifdef PYGUIDE_EMULATED
  return emulator::pack_bf16(first, second);
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
}

PYGUIDE_DEVICE uint32_t pack_f16(float first, float second) {
#ifdef PYGUIDE_EMULATED
  return emulator::pack_f16(first, second);
#else
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
}

PYGUIDE_DEVICE float float_of_bf16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

PYGUIDE_DEVICE float float_of_f16(uint16_t bits) {
#ifdef PYGUIDE_EMULATED
  return emulator::float_of_f16(bits);
#else
  float x;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(bits));
  return x;
#endif
}

// x - y in both halves, each rounded once.
PYGUIDE_DEVICE uint32_t subtract_bf16(uint32_t x, uint32_t y) {
#ifdef PYGUIDE_EMULATED
  return emulator::subtract_bf16(x, y);
#else
  // As y * -1 + x: sm_80 has no packed subtraction.
  uint32_t difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(difference) : "r"(y), "r"(0xbf80bf80u), "r"(x));
  return difference;
#endif
}

PYGUIDE_DEVICE uint32_t subtract_f16(uint32_t x, uint32_t y) {
#ifdef PYGUIDE_EMULATED
  return emulator::subtract_f16(x, y);
#else
  uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;\n" : "=r"(difference) : "r"(x), "r"(y));
  return difference;
#endif
}

}  // namespace pyguide::cuda::ptx
