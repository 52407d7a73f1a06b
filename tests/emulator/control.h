// What the tests set and ask: the seed, the site to leave out, the sites that ran, the launches.
#pragma once

#include <cstdint>

namespace pyguide::cuda::emulator {

extern __attribute__((visibility("hidden"))) uint64_t random_state;

// The next number of the seeded sequence: SplitMix64 (Steele, Lea, Flood 2014).
inline uint64_t random() {
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Notes that a barrier or wait was reached; true if it is to be left out.
bool leaves_out(const char* site);

void note_launch();

}  // namespace pyguide::cuda::emulator

extern "C" {

void pyguide_emulator_seed(uint64_t seed);

// Leaves out the barrier or wait of this name from now on; an empty name leaves out none.
void pyguide_emulator_delete(const char* site);

// The names of the sites reached since the last call, one a line, as a string that is cut off at
// `size` bytes. Returns the bytes of the whole string.
int64_t pyguide_emulator_sites(char* buffer, int64_t size);

// How many kernels were launched since the last call.
int64_t pyguide_emulator_launches();

}
