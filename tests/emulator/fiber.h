// Threads of execution that take turns on one thread of the operating system.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(PYGUIDE_UCONTEXT)
#define PYGUIDE_FIBER_UCONTEXT
#include <ucontext.h>
#endif

namespace pyguide::cuda::emulator {

// A fiber that was not started stands for whoever resumes the first one.
class Fiber {
 public:
  // Makes the next resume() call `entry`, which must not return, on the given stack.
  void start(void* stack, size_t bytes, void (*entry)());

  // Leaves the running fiber `from` for this one. Returns when somebody resumes `from`.
  void resume(Fiber& from);

  // Leaves the running fiber `from` for good.
  [[noreturn]] void resume_after_end_of(Fiber& from);

 private:
  void switch_from(Fiber& from, void** fake_stack);
  static void begin();
  static void arrived();

  void (*entry_)() = nullptr;
  const void* stack_ = nullptr;  // of an unstarted fiber, known to AddressSanitizer only
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#ifdef PYGUIDE_FIBER_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

// Stacks, each with an inaccessible page below it.
class FiberStacks {
 public:
  FiberStacks() = default;
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;
  ~FiberStacks();

  void reserve(int count);
  void* operator[](int i) const;

  // They end at different offsets, so that the frames in use do not compete for cache sets.
  static constexpr size_t bytes(int i) { return kBytes - i % 32 * 576; }

 private:
  static constexpr size_t kBytes = 128 * 1024;
  static size_t step();  // from one stack to the next

  char* memory_ = nullptr;
  int count_ = 0;
};

}  // namespace pyguide::cuda::emulator
