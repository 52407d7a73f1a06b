#include "cuda/devices.h"

#ifndef PYGUIDE_EMULATED
#include <cuda_runtime.h>

#include <string>
#endif

namespace pyguide::cuda {

#ifdef PYGUIDE_EMULATED

int device_count(const char**) { return 1; }

const char* device_capability(int, int* capability) {
  *capability = 80;
  return nullptr;
}

void forget_error() {}

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() {}

#else

namespace {

// What the runtime that is linked in needs.
constexpr int kCudaMajor = CUDART_VERSION / 1000;
constexpr int kOldestDriver = kCudaMajor >= 13 ? 580 : 530;

const char* message(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The CUDA version that the driver supports, as "13.0"; empty without a driver.
std::string driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string why_no_device(cudaError_t error) {
  const std::string oldest = std::to_string(kOldestDriver);
  const std::string supported = driver_version();
  if (supported.empty()) {
    return "there is no NVIDIA driver; for a GPU, install driver " + oldest + " or newer";
  }
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + supported + " at most; install driver " + oldest +
           " or newer, for CUDA " + std::to_string(kCudaMajor);
  }
  if (error == cudaErrorNoDevice) {
    return "the NVIDIA driver finds no GPU; see what nvidia-smi lists and what "
           "CUDA_VISIBLE_DEVICES hides";
  }
  return std::string("the NVIDIA driver does not start (") + cudaGetErrorString(error) +
         "); see what nvidia-smi says";
}

}  // namespace

int device_count(const char** why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  forget_error();
  thread_local std::string text;
  text = why_no_device(error == cudaSuccess ? cudaErrorNoDevice : error);
  *why = text.c_str();
  return -1;
}

const char* device_capability(int device, int* capability) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  *capability = 10 * major + minor;
  if (error != cudaSuccess) forget_error();
  return message(error);
}

void forget_error() { cudaGetLastError(); }

DeviceGuard::DeviceGuard(int device) {
  error_ = message(cudaGetDevice(&before_));
  if (error_ != nullptr || before_ == device) return;
  error_ = message(cudaSetDevice(device));
  changed_ = error_ == nullptr;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

#endif

}  // namespace pyguide::cuda
