// The errors that core/checks.h raises, and what it lets pass.
#include <functional>
#include <stdexcept>
#include <utility>

#include "check.h"
#include "core/checks.h"
#include "matrix.h"

using namespace pyguide;

namespace {

void check_fails(const std::function<void()>& call, const char* message) {
  std::string what = "no error";
  try {
    call();
  } catch (const std::invalid_argument& error) {
    what = error.what();
  }
  CHECK(what.find(message) != std::string::npos, "expected '" << message << "', got: " << what);
}

constexpr int64_t kHuge = INT64_MAX;

}  // namespace

TEST(codes_are_checked) {
  for (int64_t code : {int64_t(-1), int64_t(4), kHuge}) {
    check_fails([=] { dtype_from(code); }, "dtype code must be 0..3");
  }
  for (int64_t code : {int64_t(-1), int64_t(3), kHuge}) {
    check_fails([=] { centering_from(code); }, "centering code");
  }
  CHECK(dtype_from(3) == DType::kFloat16 && centering_from(2) == Centering::kU, "good codes");
}

TEST(thread_counts_are_checked) {
  for (int threads : {0, -1, INT32_MIN}) {
    check_fails([=] { check_threads(threads); }, "must be positive");
  }
  check_fails([] { check_threads(INT32_MAX); }, "at most 4096");
  check_threads(4096);
}

TEST(layers_are_checked) {
  const Matrix matrix(DType::kFloat32, 8, 3);
  const MatrixView good = matrix.view();
  check_layer({good}, 8);
  const auto fails = [&](const MatrixView& view, const char* message) {
    check_fails([&] { check_layer({view}, 8); }, message);
    check_fails([&] { check_output({view}, 8); }, message);
  };
  const auto changed = [&](auto change) {
    MatrixView view = good;
    change(view);
    return view;
  };
  fails(changed([](MatrixView& v) { v.data = nullptr; }), "null pointer");
  fails(changed([](MatrixView& v) { v.data = static_cast<char*>(v.data) + 2; }), "not aligned");
  fails(changed([](MatrixView& v) { v.data = reinterpret_cast<void*>(UINTPTR_MAX - 7); }),
        "not an address");
  fails(changed([](MatrixView& v) { v.rows = 7; }), "number of samples");
  fails(changed([](MatrixView& v) { v.cols = 0; }), "no features");
  fails(changed([](MatrixView& v) { v.cols = -5; }), "no features");
  fails(changed([](MatrixView& v) { v.row_stride = -3; }), "negative");
  fails(changed([](MatrixView& v) { v.col_stride = -1; }), "negative");
  for (int64_t huge : {kHuge, kHuge / 2, kHuge / 4}) {
    fails(changed([=](MatrixView& v) { v.row_stride = huge; }), "beyond the address space");
    fails(changed([=](MatrixView& v) { v.cols = huge; }), "beyond the address space");
  }
  fails(changed([](MatrixView& v) { v.row_stride = kHuge / 28; }), "beyond the address space");
  fails(changed([](MatrixView& v) { v.col_stride = kHuge; }), "beyond the address space");
  fails(changed([](MatrixView& v) { v.row_stride = v.col_stride = kHuge / 9; }),
        "beyond the address space");
  check_fails([&] { check_layer({changed([](MatrixView& v) { v.rows = 0; })}, 0); }, "n must be");
}

TEST(overlapping_outputs_are_refused) {
  const Matrix matrix(DType::kFloat32, 8, 3, Layout::kGaps);
  MatrixView view = matrix.view();
  const auto with_strides = [&](int64_t row, int64_t col) {
    view.row_stride = row;
    view.col_stride = col;
    return [&] { check_output({view}, 8); };
  };
  for (const auto& [row, col] : {std::pair{0, 1}, {1, 0}, {2, 1}, {1, 7}, {0, 0}, {1, 1}}) {
    check_fails(with_strides(row, col), "overlap");
    check_layer({view}, 8);  // an input may
  }
  for (const auto& [row, col] : {std::pair{3, 1}, {1, 8}, {4, 1}, {5, 2}}) {
    with_strides(row, col)();
  }
  for (DType dtype : kDTypes) {
    for (int layout = 0; layout < 4; ++layout) {
      for (int64_t cols : {1, 4}) {
        check_output({Matrix(dtype, 5, cols, static_cast<Layout>(layout)).view()}, 5);
        check_output({Matrix(dtype, 1, cols, static_cast<Layout>(layout)).view()}, 1);
      }
    }
  }
}

TEST(tokens_are_checked) {
  const Matrix matrix(DType::kFloat32, 8, 12);
  MatrixView token = matrix.view();  // 4 tokens of 3 features, 12 elements a sample
  token.cols = 3;
  const auto fails = [&](const MatrixBatch& batch, const char* message) {
    check_fails([&] { check_layer(batch, 8); }, message);
    check_fails([&] { check_output(batch, 8); }, message);
  };
  fails({token, 0, 3}, "no tokens");
  fails({token, -1, 3}, "no tokens");
  fails({token, 4, -3}, "negative");
  fails({token, kHuge, 3}, "beyond the address space");
  fails({token, 4, kHuge / 2}, "beyond the address space");
  check_layer({token, 4, 3}, 8);
  check_output({token, 4, 3}, 8);
  for (int64_t stride : {0, 1, 2, 12}) {
    check_layer({token, 4, stride}, 8);
    check_fails([&] { check_output({token, 4, stride}, 8); }, "overlap");
    check_output({token, 1, stride}, 8);
  }
  // Tokens outside the samples, as in a (T, n, d) tensor.
  token.row_stride = 3;
  check_output({token, 4, 24}, 8);
  check_fails([&] { check_output({token, 4, 23}, 8); }, "overlap");
}

TEST(a_batch_steps_from_token_to_token) {
  const Matrix matrix(DType::kFloat64, 2, 6);
  const MatrixBatch batch{matrix.view(), 3, 2};
  CHECK(batch[0].data == matrix.view().data, "first");
  CHECK(batch[2].data == static_cast<double*>(matrix.view().data) + 4, "third");
  CHECK(batch[2].rows == 2 && batch[2].row_stride == matrix.view().row_stride, "shape");
}

TEST(stacks_are_checked) {
  double memory[8];
  const auto fails = [&](void* data, DType dtype, int64_t layers, int64_t n, const char* message) {
    check_fails([=] { check_stack(data, "grams", dtype, layers, n, n); }, message);
  };
  fails(memory, DType::kFloat16, 1, 2, "float32 or float64");
  fails(nullptr, DType::kFloat64, 1, 2, "grams is a null pointer");
  fails(reinterpret_cast<char*>(memory) + 4, DType::kFloat64, 1, 2, "grams is not aligned");
  fails(memory, DType::kFloat64, 0, 2, "at least one layer");
  fails(memory, DType::kFloat64, -1, 2, "at least one layer");
  fails(memory, DType::kFloat64, 1, 0, "n must be positive");
  fails(memory, DType::kFloat64, 1, -1, "n must be positive");
  for (int64_t n : {kHuge, int64_t(1) << 32, int64_t(3037000500), int64_t(1) << 30}) {
    fails(memory, DType::kFloat64, 1, n, "beyond the address space");
  }
  fails(memory, DType::kFloat64, kHuge, 1, "beyond the address space");
  fails(memory, DType::kFloat32, kHuge / 16, 2, "beyond the address space");
  for (int64_t row_stride : {int64_t(1), int64_t(-2), INT64_MIN}) {
    check_fails([&] { check_stack(memory, "grams", DType::kFloat64, 1, 2, row_stride); },
                "rows of a stack overlap");
  }
  check_fails([&] { check_stack(memory, "grams", DType::kFloat64, 1, 2, kHuge / 8); },
              "beyond the address space");
  check_stack(memory, "grams", DType::kFloat64, 2, 2, 2);
  check_stack(memory, "grams", DType::kFloat64, 1, 2, 4);
}

TEST(indices_are_checked) {
  for (int64_t index : {int64_t(-1), int64_t(3), kHuge, INT64_MIN}) {
    check_fails([=] { check_indices({0, index}, 3, "a pair index"); }, "a pair index");
  }
  check_indices({0, 1, 2, 2}, 3, "a pair index");
  check_indices({}, 0, "a pair index");
}
