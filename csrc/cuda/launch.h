// Used by all launchers: errors with descriptions, the current device, a launch.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "cuda/kernels.h"

namespace fastlstm::cuda {

// Throws a CudaError if a call of CUDA's failed.
inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clears it, or the next CUDA call would report it
  throw CudaError(std::string(call) + ": " + cudaGetErrorName(code) + " (" +
                  std::to_string(static_cast<int>(code)) + "), " + cudaGetErrorString(code));
}

// Makes a device the current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

struct Launch {
  int device;  // the current one
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  bool cooperative;  // all blocks run at the same time, or the launch fails
  void* stream;
};

// Lets a kernel have `bytes` of dynamic shared memory. The limit belongs to the kernel, not to a
// launch: it is set once for each device, to the most that the device has. If each launch set its
// own number, a thread could lower it between the setting and the launch of another thread.
template <class Arguments>
void allow_shared(void (*kernel)(Arguments), int device, size_t bytes) {
  constexpr size_t kByDefault = 48 * 1024;
  if (bytes <= kByDefault) return;
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Arguments), int>, size_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& now = allowed[{kernel, device}];
  if (bytes <= now) return;
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "cudaFuncSetAttribute");
  now = most;
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Launch& how, const Arguments& arguments) {
  allow_shared(kernel, how.device, how.shared_bytes);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = &cooperative;
  config.numAttrs = how.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments), "cudaLaunchKernelEx");
}

}  // namespace fastlstm::cuda
