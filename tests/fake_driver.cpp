// A libcuda.so.1 of version DRIVER_VERSION, of which every call returns RESULT.
#include <cstring>

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = DRIVER_VERSION;
  return 0;
}

int any_function() { return RESULT; }

// How the CUDA runtime finds the driver's functions; an old driver lacks those of a newer runtime.
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long, void*) {
  if (version > DRIVER_VERSION) return 500;  // CUDA_ERROR_NOT_FOUND
  const bool asks_version = std::strcmp(name, "cuDriverGetVersion") == 0;
  const bool asks_itself = std::strncmp(name, "cuGetProcAddress", 16) == 0;
  *function = asks_version ? reinterpret_cast<void*>(cuDriverGetVersion)
              : asks_itself ? reinterpret_cast<void*>(cuGetProcAddress_v2)
                            : reinterpret_cast<void*>(any_function);
  return 0;
}

int cuGetProcAddress(const char* name, void** function, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
}
