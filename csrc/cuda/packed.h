// Pairs of 16-bit floats in a word, the first in the low half: what the tensor cores take of
// bfloat16 and of float16.
#pragma once

#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"

namespace pyguide::cuda {

struct PackBFloat16 {
  PYGUIDE_DEVICE static uint32_t pack(float x, float y) { return ptx::pack_bf16(x, y); }
  PYGUIDE_DEVICE static float low(uint32_t pair) { return ptx::float_of(pair << 16); }
  PYGUIDE_DEVICE static float high(uint32_t pair) { return ptx::float_of(pair & 0xffff0000u); }
  PYGUIDE_DEVICE static uint32_t subtract(uint32_t x, uint32_t y) {
    return ptx::subtract_bf16(x, y);
  }
  PYGUIDE_DEVICE static void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_bf16(c, a, b0, b1);
  }
};

struct PackFloat16 {
  PYGUIDE_DEVICE static uint32_t pack(float x, float y) { return ptx::pack_f16(x, y); }
  PYGUIDE_DEVICE static float low(uint32_t pair) { return ptx::float_of_f16(uint16_t(pair)); }
  PYGUIDE_DEVICE static float high(uint32_t pair) {
    return ptx::float_of_f16(uint16_t(pair >> 16));
  }
  PYGUIDE_DEVICE static uint32_t subtract(uint32_t x, uint32_t y) {
    return ptx::subtract_f16(x, y);
  }
  PYGUIDE_DEVICE static void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_f16(c, a, b0, b1);
  }
};

}  // namespace pyguide::cuda
