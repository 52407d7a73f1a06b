// What a warp's lanes do together: shuffles and ldmatrix.
#include <cstring>
#include <string>

#include "block.h"

namespace pyguide::cuda::emulator {

namespace {

template <class Arguments>
Arguments& of_lane(void* const* arguments, int lane) {
  return *static_cast<Arguments*>(arguments[lane]);
}

void run_shuffle_xor(void* const* arguments) {
  char values[kWarpLanes][8];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& mine = of_lane<ShuffleArguments>(arguments, lane);
    std::memcpy(values[lane], mine.value, mine.bytes);
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& mine = of_lane<ShuffleArguments>(arguments, lane);
    const int other = lane ^ mine.mask;
    if (mine.mask < 0 || mine.mask >= kWarpLanes) {
      block.fail("shuffle_xor: mask " + std::to_string(mine.mask) + " is not a lane's");
    }
    if (of_lane<ShuffleArguments>(arguments, other).bytes != mine.bytes) {
      block.fail("shuffle_xor: lanes exchange values of different sizes");
    }
    std::memcpy(mine.value, values[other], mine.bytes);
  }
}

struct Matrices {
  uint16_t element[4][8][8];
};

Matrices read_matrices(void* const* arguments, const char* name) {
  Matrices matrices;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const void* row = of_lane<MatricesArguments>(arguments, lane).row;
    const auto require = [&](bool condition, const char* what) {
      if (!condition) block.fail(name + (": lane " + std::to_string(lane)) + "'s row is " + what);
    };
    require(reinterpret_cast<uintptr_t>(row) % 16 == 0, "not aligned to 16 bytes");
    require(block.is_shared(row, 16), "outside shared memory");
    std::memcpy(matrices.element[lane / 8][lane % 8], row, 16);
  }
  return matrices;
}

void run_load_matrices(void* const* arguments) {
  const Matrices matrices = read_matrices(arguments, "load_matrices");
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    uint32_t* out = of_lane<MatricesArguments>(arguments, lane).out;
    for (int m = 0; m < 4; ++m) {
      std::memcpy(&out[m], &matrices.element[m][lane / 4][lane % 4 * 2], 4);
    }
  }
}

void run_load_matrices_transposed(void* const* arguments) {
  const Matrices matrices = read_matrices(arguments, "load_matrices_transposed");
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    uint32_t* out = of_lane<MatricesArguments>(arguments, lane).out;
    for (int m = 0; m < 4; ++m) {
      const auto& element = matrices.element[m];
      const int row = lane % 4 * 2, column = lane / 4;
      out[m] = uint32_t(element[row][column]) | uint32_t(element[row + 1][column]) << 16;
    }
  }
}

}  // namespace

const Collective kShuffleXor{"shuffle_xor", run_shuffle_xor};
const Collective kLoadMatrices{"load_matrices", run_load_matrices};
const Collective kLoadMatricesTransposed{"load_matrices_transposed", run_load_matrices_transposed};

}  // namespace pyguide::cuda::emulator
