// What the C++ allocator does in these tests: workspace (which asks for alignment) is filled with
// a chosen byte, and the calling thread's allocations can be made to fail.
#pragma once

namespace workspace {

// 0xff makes every float and double a NaN.
void fill_with(unsigned char byte);

// The calling thread's allocation number `index` from now on, counted from 0, throws
// std::bad_alloc; -1 lets all pass.
void fail_at(int index);

}  // namespace workspace
