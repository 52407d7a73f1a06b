#include "bindings/cuda_library.h"

#include <dlfcn.h>

#include <atomic>
#include <stdexcept>

namespace pyguide::bindings {
namespace {

std::atomic<const cuda::Api*> opened{nullptr};

[[noreturn]] void fail(const std::string& why) {
  throw std::runtime_error("cannot open the CUDA library: " + why);
}

}  // namespace

void open_cuda_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(dlerror());  // names the path
  const auto table = reinterpret_cast<decltype(&pyguide_cuda_api)>(
      dlsym(library, "pyguide_cuda_api"));
  if (table == nullptr) fail(path + " has no pyguide_cuda_api");
  const cuda::Api* api = table();
  if (api->version != cuda::kApiVersion) {
    fail(path + " has version " + std::to_string(api->version) + " of the interface, not " +
         std::to_string(cuda::kApiVersion) + ": install pyguide again");
  }
  opened = api;
}

const cuda::Api& cuda_library() {
  const cuda::Api* api = opened;
  if (api == nullptr) throw std::runtime_error("no CUDA library was opened");
  return *api;
}

}  // namespace pyguide::bindings
