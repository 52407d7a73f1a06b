// A list of named tests and a CHECK that says where, what and why.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Test {
  std::string name;
  void (*run)();
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

struct Registration {
  Registration(const char* name, void (*run)()) { all_tests().push_back({name, run}); }
};

// Tests whose name starts with "planted_" contain a fault on purpose, for a sanitizer to find:
// they run only when named in full.
#define TEST(name)                                            \
  static void name();                                         \
  static const Registration name##_registration(#name, name); \
  static void name()

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// CHECK(a == b, "n " << n): the message is only formed when the condition is false.
#define CHECK(condition, message)                                                           \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      std::ostringstream text;                                                              \
      text.precision(17);                                                                   \
      text << __FILE__ << ":" << __LINE__ << ": " << #condition << " is false: " << message; \
      throw Failure(text.str());                                                            \
    }                                                                                       \
  } while (false)
