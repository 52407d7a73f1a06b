// One place where threads are started.
#pragma once

#include <cstdint>
#include <functional>

namespace pyguide {

// Whether parallel regions may go to the OpenMP runtime: not where it is compiled out
// (PYGUIDE_THREADS=std), and not in a forked child. A child has none of its parent's threads, but
// a copy of the runtime's pool that lists them: libgomp waits for them forever.
bool openmp_usable();

// Calls body(t) for t in [0, threads) on std::threads, one of them the caller's own.
void run_on_std_threads(int threads, const std::function<void(int)>& body);

// Calls body(t) for t in [0, threads), side by side; returns when all are done. With one
// thread it is a plain call: no parallel region is entered. body must not throw.
template <class Body>
void parallel(int threads, Body&& body) {
  if (threads <= 1) {
    if (threads == 1) body(0);
    return;
  }
  if (!openmp_usable()) {
    run_on_std_threads(threads, std::ref(body));
    return;
  }
#ifdef _OPENMP
  // The runtime may grant fewer threads than asked for; the loop then runs several a thread.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) body(t);
#endif
}

// How many of `threads` are worth using for this many multiply-adds. Entering a parallel region
// took 0.6-1.7 us while the pool was spinning, the time of 2^14-2^15 of them on one core, and takes
// more once the pool sleeps: 2^17 each is on the safe side. Depends on the sizes only, so results
// stay reproducible.
inline int threads_for(double work, int threads) {
  const double worth = 1 + work / double(1 << 17);
  return worth < threads ? int(worth) : threads;
}

// Calls body(i) for i in [0, count), in contiguous ranges.
template <class Body>
void parallel_for(int threads, int64_t count, Body&& body) {
  if (threads > count) threads = int(count);
  parallel(threads, [&](int t) {
    const int64_t end = count * (t + 1) / threads;
    for (int64_t i = count * t / threads; i < end; ++i) body(i);
  });
}

}  // namespace pyguide
