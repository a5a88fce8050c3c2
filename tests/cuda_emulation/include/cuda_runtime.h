// Stands in for CUDA's header of this name, as far as the kernels and their launchers use it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "emulator.h"
#include "fault.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// The kernel's side.

inline void __syncthreads(
    fastlstm::emulation::CallSite site = fastlstm::emulation::CallSite::here()) {
  fastlstm::emulation::synchronise_block(site);
}

inline void __syncwarp(fastlstm::emulation::CallSite site = fastlstm::emulation::CallSite::here()) {
  if (fastlstm::emulation::goes_wrong(fastlstm::emulation::Fault::syncwarp, site)) return;
  fastlstm::emulation::meet("__syncwarp", site, nullptr, nullptr, [](auto&) {});
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int bits,
                      fastlstm::emulation::CallSite site = fastlstm::emulation::CallSite::here()) {
  using namespace fastlstm::emulation;
  if (mask != kAllLanes) fail("shuffles of a part of a warp are not emulated");
  Value all[kLanes];
  meet("__shfl_xor_sync", site, &value, all, [](Warp& warp) {
    for (void* to : warp.out) {
      for (int from = 0; from < kLanes; ++from) {
        static_cast<Value*>(to)[from] = *static_cast<const Value*>(warp.in[from]);
      }
    }
  });
  return all[this_thread().number % kLanes ^ bits];
}

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Value>
constexpr Value min(Value a, Value b) {
  return b < a ? b : a;
}

template <class Value>
constexpr Value max(Value a, Value b) {
  return a < b ? b : a;
}

// The launcher's side.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);

typedef struct CUstream_st* cudaStream_t;

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream = nullptr);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };

union cudaLaunchAttributeValue {
  int cooperative;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace fastlstm::emulation {

cudaError_t allow_shared(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t launch_if_allowed(const cudaLaunchConfig_t& config, const void* kernel,
                              std::function<void()> body);

}  // namespace fastlstm::emulation

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return fastlstm::emulation::allow_shared(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  return fastlstm::emulation::launch_if_allowed(*config, reinterpret_cast<const void*>(kernel),
                                                [&] { std::apply(kernel, copies); });
}
