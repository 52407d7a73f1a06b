#include "control.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <unordered_set>

#define EXPORTED __attribute__((visibility("default")))

namespace pyguide::cuda::emulator {

uint64_t random_state = 0;

namespace {

std::string deleted;
std::unordered_set<const char*> reached;
const char* last_reached = nullptr;
int64_t launches = 0;

}  // namespace

bool leaves_out(const char* site) {
  if (site != last_reached) {
    reached.insert(site);
    last_reached = site;
  }
  return !deleted.empty() && deleted == site;
}

void note_launch() { ++launches; }

}  // namespace pyguide::cuda::emulator

using namespace pyguide::cuda;

extern "C" {

EXPORTED void pyguide_emulator_seed(uint64_t seed) { emulator::random_state = seed; }

EXPORTED void pyguide_emulator_delete(const char* site) { emulator::deleted = site; }

EXPORTED int64_t pyguide_emulator_sites(char* buffer, int64_t size) {
  const std::set<std::string> names(emulator::reached.begin(), emulator::reached.end());
  emulator::reached.clear();
  emulator::last_reached = nullptr;
  std::string lines;
  for (const std::string& name : names) lines += name + "\n";
  const int64_t bytes = int64_t(lines.size()) + 1;
  if (size > 0) {
    std::memcpy(buffer, lines.c_str(), std::min(size, bytes));
    buffer[std::min(size, bytes) - 1] = 0;
  }
  return bytes;
}

EXPORTED int64_t pyguide_emulator_launches() {
  const int64_t count = emulator::launches;
  emulator::launches = 0;
  return count;
}

}
