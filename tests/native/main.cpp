// pyguide_tests: runs the tests whose name contains one of the arguments, or all of them.
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include "check.h"

namespace {

bool is_wanted(const std::string& name, int count, char** filters) {
  const bool planted = name.rfind("planted_", 0) == 0;
  for (int i = 0; i < count; ++i) {
    if (planted ? name == filters[i] : name.find(filters[i]) != std::string::npos) return true;
  }
  return count == 0 && !planted;
}

bool passes(const Test& test) {
  const auto start = std::chrono::steady_clock::now();
  std::string failure;
  try {
    test.run();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%s %s (%.2f s)\n", failure.empty() ? "passed" : "FAILED", test.name.c_str(),
              seconds.count());
  if (!failure.empty()) std::printf("  %s\n", failure.c_str());
  std::fflush(stdout);
  return failure.empty();
}

}  // namespace

int main(int argc, char** argv) {
  int ran = 0, failed = 0;
  for (const Test& test : all_tests()) {
    if (!is_wanted(test.name, argc - 1, argv + 1)) continue;
    ++ran;
    failed += !passes(test);
  }
  std::printf("%d tests, %d failed\n", ran, failed);
  return ran == 0 || failed > 0;
}
