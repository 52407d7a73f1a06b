// What the tests set and ask: the seed, the site to leave out, the sites that ran, the launches.
#pragma once

#include <cstdint>

namespace pyguide::cuda::emulator {

// The next number of the seeded sequence.
uint64_t random();

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
