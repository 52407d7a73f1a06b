#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef PYGUIDE_FIBER_UCONTEXT
// swapcontext saves the signal mask, which is a system call: a hundred times slower.
extern "C" __attribute__((visibility("hidden"))) void pyguide_switch_context(void** save, void* to);
asm(R"(
.text
.globl pyguide_switch_context
.hidden pyguide_switch_context
.type pyguide_switch_context, @function
pyguide_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pyguide_switch_context, .-pyguide_switch_context
)");
#endif

namespace pyguide::cuda::emulator {

namespace {

Fiber* arriving = nullptr;
Fiber* leaving = nullptr;

size_t page_bytes() {
  static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

void Fiber::start(void* stack, size_t bytes, void (*entry)()) {
  entry_ = entry;
  stack_ = stack;
  bytes_ = bytes;
  fake_stack_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  // Frames of the last run were left, not returned from.
  __asan_unpoison_memory_region(stack, bytes);
#endif
#ifdef PYGUIDE_FIBER_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::begin, 0);
#else
  // Six saved registers, the address that `ret` goes to, and a return address for begin().
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(&Fiber::begin);
  stack_pointer_ = top;
#endif
}

void Fiber::begin() {
  arrived();
  arriving->entry_();
  std::abort();
}

void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(arriving->fake_stack_, &leaving->stack_, &leaving->bytes_);
#endif
}

void Fiber::switch_from(Fiber& from, [[maybe_unused]] void** fake_stack) {
  leaving = &from;
  arriving = this;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, stack_, bytes_);
#endif
#ifdef PYGUIDE_FIBER_UCONTEXT
  swapcontext(&from.context_, &context_);
#else
  pyguide_switch_context(&from.stack_pointer_, stack_pointer_);
#endif
}

void Fiber::resume(Fiber& from) {
  switch_from(from, &from.fake_stack_);
  arrived();
}

void Fiber::resume_after_end_of(Fiber& from) {
  switch_from(from, nullptr);
  std::abort();
}

size_t FiberStacks::step() { return kBytes + page_bytes(); }

FiberStacks::~FiberStacks() {
  if (memory_) munmap(memory_, count_ * step());
}

void FiberStacks::reserve(int count) {
  if (count <= count_) return;
  if (memory_) munmap(memory_, count_ * step());
  count_ = 0;
  void* memory = mmap(nullptr, count * step(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  memory_ = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  if (!memory_) throw std::bad_alloc();
  count_ = count;
  for (int i = 0; i < count; ++i) mprotect(memory_ + i * step(), page_bytes(), PROT_NONE);
}

void* FiberStacks::operator[](int i) const { return memory_ + i * step() + page_bytes(); }

}  // namespace pyguide::cuda::emulator
