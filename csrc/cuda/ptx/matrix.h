// ldmatrix: a warp reads 8 x 8 matrices of 16-bit elements from shared memory into the layout of
// mma's operands.
#pragma once

#include "cuda/ptx/copy.h"

namespace pyguide::cuda::ptx {

// Four matrices. Lane 8m + r gives the address of row r (16 bytes, aligned) of matrix m; lane l
// gets in out[m] the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4. A matrix of 8 rows of four
// 32-bit elements is read alike: lane l gets element l % 4 of row l / 4.
PYGUIDE_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef PYGUIDE_EMULATED
  emulator::load_matrices(out, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// The same, transposed: lane l gets in out[m] the elements l / 4 of rows 2 (l % 4) and
// 2 (l % 4) + 1.
PYGUIDE_DEVICE void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
#ifdef PYGUIDE_EMULATED
  emulator::load_matrices_transposed(out, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

}  // namespace pyguide::cuda::ptx
