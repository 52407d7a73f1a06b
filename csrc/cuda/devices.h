// The machine's devices: how many, of what kind, and which one is current.
#pragma once

namespace pyguide::cuda {

// The kernels use cp.async, and mma of bf16, tf32 and float64: compute capability 8.0.
constexpr int kMinCapability = 80;

// As Api::device_count.
int count_devices(const char** why);

// Compute capability as 10 * major + minor. Returns nullptr, or what went wrong.
const char* read_capability(int device, int* capability);

// Clears the runtime's record of this thread's last error.
void forget_error();

// Makes a device current for the calling thread while the guard lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  // Why the device is not current, or nullptr.
  const char* error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  const char* error_ = nullptr;
};

}  // namespace pyguide::cuda
