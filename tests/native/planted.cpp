// Faults on purpose, inside the kernels: a sanitizer that misses one of them was not built in.
#include <thread>

#include "check.h"
#include "cpu/ops.h"
#include "matrix.h"

using namespace pyguide;

namespace {

void gram_of(const MatrixView& x, Stack& grams) {
  cpu::gram({x}, Centering::kNone, {grams.data(), grams.dtype(), 1, grams.n()}, nullptr,
            cpu::kernel_set(""), 1);
}

}  // namespace

TEST(planted_overrun) {
  const Matrix x(DType::kFloat32, 20, 30);
  MatrixView one_more = x.view();
  one_more.data = static_cast<float*>(one_more.data) + 1;
  Stack grams(DType::kFloat32, 1, 20);
  gram_of(one_more, grams);
}

TEST(planted_undefined_behaviour) {
  const Matrix x(DType::kFloat32, 20, 31);
  MatrixView misaligned = x.view();
  misaligned.data = static_cast<char*>(misaligned.data) + 2;
  misaligned.cols = 30;
  Stack grams(DType::kFloat32, 1, 20);
  gram_of(misaligned, grams);
}

TEST(planted_leak) {
  // Volatile, so that no register keeps the last address.
  for (volatile int i = 0; i < 100; ++i) new Stack(DType::kFloat32, 1, 20);
}

TEST(planted_race) {
  const Stack a(DType::kFloat32, 1, 20);
  const Matrix x(DType::kFloat32, 20, 30), out(DType::kFloat32, 20, 30);
  const auto apply = [&] {
    cpu::apply({{a.data(), x.view(), out.view()}}, DType::kFloat32, false, cpu::kernel_set(""), 1);
  };
  std::thread other(apply);
  apply();
  other.join();
}

TEST(planted_failure) { CHECK(1 + 1 == 3, "this test fails"); }
