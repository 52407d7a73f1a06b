#include "block.h"

#include <cstring>
#include <map>
#include <stdexcept>

#include "control.h"

namespace pyguide::cuda::emulator {

Position position;
Block block;

namespace {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A number below `count` from the upper half of a random one.
int scaled(uint64_t number, int count) { return int((number >> 32) * uint64_t(count) >> 32); }

}  // namespace

void Block::prepare(const Launch& launch) {
  launch_ = &launch;
  // Exactly its size, so that AddressSanitizer sees an overrun; the bytes are NaN in every type.
  shared_.reset(::operator new(launch.shared_bytes, std::align_val_t(128)));
  std::memset(shared_.get(), 0xff, launch.shared_bytes);
  stacks_.reserve(launch.threads);
  threads_.resize(launch.threads);
  warps_.assign(launch.threads / kWarpLanes, Warp{});
  ready_warps_.clear();
  for (int i = 0; i < launch.threads; ++i) {
    threads_[i].fiber.start(stacks_[i], FiberStacks::bytes(i), run_thread);
    threads_[i].queue = CopyQueue{};
  }
  make_all_ready();
  barrier_site_ = nullptr;
  at_barrier_ = finished_ = 0;
  failure_.clear();
  // From a new draw at every step, which keeps the warps together, to warps that run until they
  // have to wait, which lets one get far ahead of the others.
  constexpr uint64_t kPatience[] = {0, 0xf, 0xff, 0xffff};
  patience_mask_ = kPatience[scaled(random(), 4)];
}

std::string Block::run(const Launch& launch, int64_t index) {
  prepare(launch);
  choose_warp();
  position = {next(), index};
  threads_[position.thread].fiber.resume(launcher_);
  return failure_;
}

void Block::run_thread() {
  Fiber& self = block.thread().fiber;
  try {
    block.launch_->run(block.launch_->params, block.shared_.get());
    block.finish_thread();
  } catch (const Fault& fault) {
    block.failure_ = fault.what();
  }
  Fiber& next = block.failure_.empty() && block.finished_ < int(block.threads_.size())
                    ? block.thread().fiber
                    : block.launcher_;
  next.resume_after_end_of(self);
}

void Block::finish_thread() {
  if (!thread().queue.copies.empty()) fail("asynchronous copies are still under way at the end");
  if (++finished_ < int(threads_.size())) position.thread = next();
}

void Block::make_ready(int index, int except) {
  Warp& warp = warps_[index];
  warp.ready_count = 0;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    warp.ready[warp.ready_count] = lane;
    warp.ready_count += lane != except;
  }
  warp.listed_at = int(ready_warps_.size());
  ready_warps_.push_back(index);
}

void Block::make_all_ready() {
  for (int i = 0; i < int(warps_.size()); ++i) make_ready(i);
}

void Block::choose_warp() { warp_ = ready_warps_[scaled(random(), int(ready_warps_.size()))]; }

// Draws the thread that runs next and takes it out of the ready ones.
int Block::next() {
  if (ready_warps_.empty()) fail(deadlock());
  const uint64_t number = random();
  if (warps_[warp_].ready_count == 0 || (number & patience_mask_) == 0) choose_warp();
  Warp& warp = warps_[warp_];
  const int place = scaled(number, warp.ready_count);
  const int lane = warp.ready[place];
  warp.ready[place] = warp.ready[--warp.ready_count];
  if (warp.ready_count == 0) {
    ready_warps_[warp.listed_at] = ready_warps_.back();
    warps_[ready_warps_.back()].listed_at = warp.listed_at;
    ready_warps_.pop_back();
  }
  return warp_ * kWarpLanes + lane;
}

void Block::suspend() {
  const int self = position.thread;
  position.thread = next();
  if (position.thread != self) thread().fiber.resume(threads_[self].fiber);
}

void Block::barrier(const char* site) {
  if (at_barrier_ > 0 && std::strcmp(barrier_site_, site) != 0) {
    fail("divergent barrier: this thread came to barrier '" + std::string(site) +
         "' while others wait at '" + barrier_site_ + "'");
  }
  barrier_site_ = site;
  if (++at_barrier_ == int(threads_.size())) {
    at_barrier_ = 0;
    make_all_ready();
    choose_warp();
  }
  suspend();
}

void Block::arrive(const Collective& operation, void* arguments) {
  Warp& warp = warps_[warp_];
  if (warp.arrived > 0 && warp.operation != &operation) {
    fail("divergent warp: this lane came to " + std::string(operation.name) +
         " while others wait at " + warp.operation->name);
  }
  warp.operation = &operation;
  const int lane = position.thread % kWarpLanes;
  warp.arguments[lane] = arguments;
  if (++warp.arrived < kWarpLanes) return suspend();
  warp.arrived = 0;
  operation.run(warp.arguments);
  make_ready(warp_, lane);
}

std::string Block::deadlock() const {
  std::map<std::string, int> waiting;
  for (const Warp& warp : warps_) {
    if (warp.arrived > 0) waiting[warp.operation->name] += warp.arrived;
  }
  if (at_barrier_ > 0) waiting[barrier_site_] = at_barrier_;
  std::string text = "divergent threads: nobody can go on, " + std::to_string(finished_) +
                     " have finished";
  for (const auto& [at, count] : waiting) {
    text += ", " + std::to_string(count) + " wait at '" + at + "'";
  }
  return text;
}

void Block::fail(const std::string& what) const {
  throw Fault("block " + std::to_string(position.block) + ", thread " +
              std::to_string(position.thread) + ": " + what);
}

bool Block::is_shared(const void* p, int64_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto start = reinterpret_cast<uintptr_t>(shared_.get());
  return address >= start && address + bytes <= start + launch_->shared_bytes;
}

}  // namespace pyguide::cuda::emulator
