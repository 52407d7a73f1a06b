// One place where threads are started.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pyguide {

// Calls body(t) for t in [0, threads), side by side; returns when all are done. With one
// thread it is a plain call: no parallel region is entered (a forked child may rely on it).
// body must not throw.
template <class Body>
void parallel(int threads, Body&& body) {
#ifdef _OPENMP
  if (threads > 1) {
    // The runtime may grant fewer threads than asked for; the loop then runs several a thread.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) body(t);
    return;
  }
#endif
  for (int t = 0; t < threads; ++t) body(t);
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
