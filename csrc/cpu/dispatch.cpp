// Chooses the instruction set at run time.
#include <stdexcept>

#include "cpu/kernels.h"

namespace pyguide::cpu {

#ifdef PYGUIDE_HAVE_X86_64
extern const KernelSet kAvx512Kernels, kAvx2Kernels;
#endif
extern const KernelSet kPortableKernels;

namespace {

std::vector<const KernelSet*> supported_sets() {
  std::vector<const KernelSet*> sets;
#ifdef PYGUIDE_HAVE_X86_64
  // Also asks whether the operating system saves the wider registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    sets.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(&kAvx2Kernels);
  }
#endif
  sets.push_back(&kPortableKernels);
  return sets;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const KernelSet* set : supported_sets()) names.emplace_back(set->name);
  return names;
}

const KernelSet& kernel_set(const std::string& name) {
  static const std::vector<const KernelSet*> sets = supported_sets();
  if (name.empty()) return *sets.front();
  std::string known;
  for (const KernelSet* set : sets) {
    if (name == set->name) return *set;
    known += known.empty() ? set->name : std::string(", ") + set->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; known: " +
                              known);
}

}  // namespace pyguide::cpu
