#include "core/parallel.h"

#include <pthread.h>

#include <exception>
#include <thread>
#include <vector>

namespace pyguide {
namespace {

#ifdef _OPENMP
bool is_forked_child = false;
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
#endif

}  // namespace

bool openmp_usable() {
#ifdef _OPENMP
  return !is_forked_child;
#else
  return false;
#endif
}

void run_on_std_threads(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> others;
  others.reserve(size_t(threads) - 1);
  int t = 1;
  try {
    for (; t < threads; ++t) others.emplace_back(std::cref(body), t);
  } catch (const std::exception&) {
    // The system grants no more threads: the rest runs here.
  }
  body(0);
  for (; t < threads; ++t) body(t);
  for (std::thread& other : others) other.join();
}

}  // namespace pyguide
