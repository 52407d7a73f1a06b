// mma.sync: C += A B on the tensor cores, a warp together. With g = lane / 4 and t = lane % 4:
//   C, 16 x 8   c[0], c[1]: row g, columns 2t, 2t + 1;  c[2], c[3]: row g + 8
//   A, 16 x 16 (16-bit)   a[0]: row g, a[1]: row g + 8, depths 2t, 2t + 1;  a[2], a[3]: depths + 8
//   A, 16 x 8 (tf32)      a[0]: row g, a[1]: row g + 8, depth t;  a[2], a[3]: depth t + 4
//   B, 16 x 8 (16-bit)    b[0]: depths 2t, 2t + 1 of column g;  b[1]: depths + 8
//   B, 8 x 8 (tf32)       b[0]: depth t of column g;  b[1]: depth t + 4
// (PTX ISA, "Matrix fragments for mma".) Float accumulation inside the unit truncates.
#pragma once

#include "cuda/device.h"

namespace pyguide::cuda::ptx {

PYGUIDE_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef PYGUIDE_EMULATED
  emulator::mma_bf16(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

PYGUIDE_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef PYGUIDE_EMULATED
  emulator::mma_f16(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Operands are float32 bits of which the unit ignores the low 13.
PYGUIDE_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef PYGUIDE_EMULATED
  emulator::mma_tf32(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// 8 x 8 x 4: c[0], c[1] are row g, columns 2t, 2t + 1; a is depth t of row g, b depth t of
// column g. Rounds as fma does.
PYGUIDE_DEVICE void mma_f64(double (&c)[2], double a, double b) {
#ifdef PYGUIDE_EMULATED
  emulator::mma_f64(c, a, b);
#else
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
#endif
}

}  // namespace pyguide::cuda::ptx
