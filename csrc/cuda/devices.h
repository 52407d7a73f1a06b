// The machine's devices: how many, of what kind, and which one is current.
#pragma once

namespace pyguide::cuda {

// As in Api.
int device_count(const char** why);
const char* device_capability(int device, int* capability);

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
