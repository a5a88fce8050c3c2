// CUDA's runtime, for one device that runs everything at once.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <utility>

#include "device.h"

namespace {

constexpr size_t kSharedByDefault = 48 << 10;  // more must be allowed for a kernel first

cudaError_t last_error = cudaSuccess;
std::map<const void*, size_t> allowed_shared;
std::vector<int> limits;                            // that were set since take_limits was called
std::vector<std::pair<size_t, unsigned>> launches;  // since take_launches was called

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using fastlstm::emulation::pretended_device;
  if (device != 0) return note(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = pretended_device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = pretended_device.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = pretended_device.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = pretended_device.shared_memory;
      return cudaSuccess;
  }
  return note(cudaErrorInvalidValue);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

namespace fastlstm::emulation {

cudaError_t allow_shared(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > pretended_device.shared_memory) return note(cudaErrorInvalidValue);
  allowed_shared[kernel] = value;
  limits.push_back(value);
  return cudaSuccess;
}

std::vector<int> take_limits() { return std::exchange(limits, {}); }

std::vector<std::pair<size_t, unsigned>> take_launches() { return std::exchange(launches, {}); }

cudaError_t launch_if_allowed(const cudaLaunchConfig_t& config, const void* kernel,
                              std::function<void()> body) {
  bool cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    cooperative |= config.attrs[i].id == cudaLaunchAttributeCooperative &&
                   config.attrs[i].val.cooperative != 0;
  }
  const auto allowed = allowed_shared.find(kernel);
  const size_t limit = allowed == allowed_shared.end()
                           ? kSharedByDefault
                           : std::max(kSharedByDefault, allowed->second);
  const size_t blocks = size_t{config.gridDim.x} * config.gridDim.y * config.gridDim.z;
  if (blocks == 0 || config.dynamicSmemBytes > limit) return note(cudaErrorInvalidValue);
  // One block on each multiprocessor: a GPU may have room for more of a small kernel.
  if (cooperative && blocks > static_cast<size_t>(pretended_device.multiprocessors)) {
    return note(cudaErrorCooperativeLaunchTooLarge);
  }
  launches.emplace_back(blocks, config.blockDim.x);
  const auto size = [](const dim3& from) { return uint3{from.x, from.y, from.z}; };
  launch({size(config.gridDim), size(config.blockDim), config.dynamicSmemBytes, cooperative,
          std::move(body)});
  return cudaSuccess;
}

}  // namespace fastlstm::emulation
