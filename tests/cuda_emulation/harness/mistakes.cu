// Kernels of a few lines that make one mistake each.
#include <cmath>
#include <map>
#include <stdexcept>

#include "cuda/primitives.cuh"
#include "mistakes.h"

namespace fastlstm::harness {
namespace {

using namespace cuda;

struct Call {
  float* out;
  unsigned* counter;
};

// One thread takes a way on which it meets another barrier.
__global__ void divergent_barrier(const Call) {
  if (threadIdx.x == 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Half of a warp shuffles, half synchronises.
__global__ void divergent_warp(const Call call) {
  if (threadIdx.x % 32 < 16) {
    call.out[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  } else {
    __syncwarp();
  }
}

// A warp that has lost one of its lanes.
__global__ void lost_lane(const Call) {
  if (threadIdx.x != 33) __syncwarp();
}

__global__ void endless_poll(const Call call) {
  if (threadIdx.x == 0) arrive(call.counter);
  while (poll(call.counter) < 3) {
  }
}

// Makes progress for ever: what a limit of switches is for.
__global__ void livelock(const Call) {
  for (;;) __syncwarp();
}

__global__ void unwritten_shared(const Call call) {
  if (threadIdx.x == 0) call.out[0] = reinterpret_cast<const float*>(dynamic_shared())[5];
}

__global__ void past_the_end(const Call) {
  if (threadIdx.x == 0) reinterpret_cast<float*>(dynamic_shared())[256] = 1.0f;
}

__global__ void copy_past_the_end(const Call call) {
  copy_async_16(true, shared_memory() + 16 * threadIdx.x + 16, call.out);
}

__global__ void misaligned_matrices(const Call) {
  uint32_t words[4];
  load_matrices(words, shared_memory() + 8 * (threadIdx.x % 32));
}

// The neighbour's copies have been waited for by the neighbour, but not by a barrier.
__global__ void no_syncwarp_after_copies(const Call call) {
  const int lane = threadIdx.x % 32;
  copy_async_16(true, shared_memory() + 16 * threadIdx.x, call.out);
  commit_copies();
  wait_copies<0>();
  uint32_t words[4];
  load_matrices(words, shared_memory() + 16 * (threadIdx.x / 32 * 32 + (lane + 1) % 32));
  if (std::isnan(__uint_as_float(words[0]))) call.out[4] = NAN;
}

struct Mistake {
  void (*kernel)(Call);
  size_t shared_bytes;
  unsigned blocks;
};

const std::map<std::string, Mistake> kMistakes = {
    {"divergent_barrier", {divergent_barrier, 0, 1}},
    {"divergent_warp", {divergent_warp, 0, 1}},
    {"lost_lane", {lost_lane, 0, 1}},
    {"endless_poll", {endless_poll, 0, 2}},
    {"livelock", {livelock, 0, 1}},
    {"unwritten_shared", {unwritten_shared, 1024, 1}},
    {"past_the_end", {past_the_end, 1024, 1}},
    {"copy_past_the_end", {copy_past_the_end, 1024, 1}},
    {"misaligned_matrices", {misaligned_matrices, 1024, 1}},
    {"no_syncwarp_after_copies", {no_syncwarp_after_copies, 1024, 1}},
    {"too_much_shared", {lost_lane, 49 << 10, 1}},
    {"too_many_blocks", {lost_lane, 0, 133}},
};

}  // namespace

std::string mistake(const std::string& name) {
  const auto found = kMistakes.find(name);
  if (found == kMistakes.end()) throw std::invalid_argument("mistake: there is no " + name);
  float out[5] = {};
  unsigned counter = 0;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(found->second.blocks);
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = found->second.shared_bytes;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, found->second.kernel, Call{out, &counter});
  if (error != cudaSuccess) return cudaGetErrorName(error);
  return std::isnan(out[0]) || std::isnan(out[4]) ? "NaN" : "numbers";
}

}  // namespace fastlstm::harness
