// Measures what a step of a persistent kernel waits for: a barrier between blocks, and rows that
// all blocks read through L2. Prints microseconds per step by the number of blocks and the bytes
// that each block reads, from launches of two lengths, so that the time of the launch itself
// cancels:
//
//   grid     grid.sync() of cooperative groups
//   counter  the barrier of csrc/cuda/block.cuh: one thread adds, one thread polls
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/primitives.cuh"

namespace {

using namespace fastlstm::cuda;

constexpr int kThreads = 256;

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(code));
  std::exit(1);
}

struct Arguments {
  unsigned* counter;
  const uint4* rows;
  int vectors;
  int steps;
  bool is_grid;
  uint4* sink;
};

__global__ void __launch_bounds__(kThreads, 1) steps(const Arguments arguments) {
  uint4 sum{};
  for (int step = 0; step < arguments.steps; ++step) {
    for (int i = threadIdx.x; i < arguments.vectors; i += kThreads) {
      const uint4 read = __ldcg(arguments.rows + i);
      sum.x ^= read.x, sum.y ^= read.y, sum.z ^= read.z, sum.w ^= read.w;
    }
    if (arguments.is_grid) {
      cooperative_groups::this_grid().sync();
      continue;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      arrive(arguments.counter);
      while (poll(arguments.counter) < (step + 1) * gridDim.x) {
      }
    }
    __syncthreads();
  }
  if (sum.x == 1) *arguments.sink = sum;  // never true, because the rows are 0; keeps the reads
}

float milliseconds(int blocks, Arguments arguments) {
  check(cudaMemset(arguments.counter, 0, sizeof(unsigned)), "cudaMemset");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  check(cudaEventRecord(begin), "cudaEventRecord");
  check(cudaLaunchKernelEx(&config, steps, arguments), "cudaLaunchKernelEx");
  check(cudaEventRecord(end), "cudaEventRecord");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  float took = 0;
  check(cudaEventElapsedTime(&took, begin, end), "cudaEventElapsedTime");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return took;
}

}  // namespace

int main() {
  constexpr int kMaxBytes = 256 * 1024;
  constexpr int kSteps = 1000;
  Arguments arguments{};
  uint4* rows = nullptr;
  check(cudaMalloc(&arguments.counter, sizeof(unsigned)), "cudaMalloc");
  check(cudaMalloc(&rows, kMaxBytes), "cudaMalloc");
  check(cudaMalloc(&arguments.sink, sizeof(uint4)), "cudaMalloc");
  check(cudaMemset(rows, 0, kMaxBytes), "cudaMemset");
  arguments.rows = rows;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  std::printf("%-8s %6s %8s %9s\n", "barrier", "blocks", "bytes", "us/step");
  for (const bool is_grid : {true, false}) {
    for (int blocks = 8; blocks <= multiprocessors; blocks *= 2) {
      for (const int bytes : {0, 16 * 1024, 64 * 1024, kMaxBytes}) {
        arguments.is_grid = is_grid;
        arguments.vectors = bytes / static_cast<int>(sizeof(uint4));
        float least[2] = {1e30f, 1e30f};
        for (int round = 0; round < 5; ++round) {
          for (int i = 0; i < 2; ++i) {
            arguments.steps = kSteps * (i + 1);
            least[i] = std::min(least[i], milliseconds(blocks, arguments));
          }
        }
        std::printf("%-8s %6d %8d %9.3f\n", is_grid ? "grid" : "counter", blocks, bytes,
                    1e3 * (least[1] - least[0]) / kSteps);
      }
    }
  }
  return 0;
}
