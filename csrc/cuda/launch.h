// What launchers share: errors in words, the current device, a launch.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace fastlstm::cuda {

// Throws what a call of CUDA's returned, if it failed.
inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next call of anyone's would find it
  throw CudaError(std::string(call) + ": " + cudaGetErrorName(code) + " (" +
                  std::to_string(static_cast<int>(code)) + "), " + cudaGetErrorString(code));
}

// Makes a device the current one for as long as it lives.
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
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  bool cooperative;  // all blocks at once, or an error
  void* stream;
};

template <class Arguments>
void launch(void (*kernel)(Arguments), const Launch& how, const Arguments& arguments) {
  if (how.shared_bytes > 48 * 1024) {  // what any kernel may have
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(how.shared_bytes)),
          "cudaFuncSetAttribute");
  }
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
