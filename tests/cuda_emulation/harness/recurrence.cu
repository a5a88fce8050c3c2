// The smallest kernel with all that the real ones have: h <- tanh(W h + x), with W (64, 64) spread
// over four blocks, h (8, 64) exchanged through global memory, a sum over k split between two
// warps, and a barrier of the blocks after each step. The harness is tested with it.
#include <algorithm>

#include "recurrence.h"

namespace fastlstm::harness {
namespace {

using namespace cuda;

constexpr int kColumns = 8;  // rows of the batch
constexpr int kBlocks = 4, kRows = kHidden / kBlocks;
constexpr int kWarps = 2, kThreads = 32 * kWarps;
constexpr int kPitch = kHidden + 8;  // of a row of h in shared memory
constexpr int kSums = kRows * kColumns;
constexpr size_t kStagingBytes = kColumns * kPitch * sizeof(__nv_bfloat16);
constexpr size_t kSharedBytes = kStagingBytes + kWarps * kSums * sizeof(float);

__device__ uint32_t two_weights(const Recurrence& call, int row, int k) {
  uint32_t bits;
  std::memcpy(&bits, call.weight + row * kHidden + k, sizeof bits);
  return bits;
}

__global__ void __launch_bounds__(kThreads) recurrence_kernel(const Recurrence call) {
  auto* staging = reinterpret_cast<__nv_bfloat16*>(dynamic_shared());
  auto* sums = reinterpret_cast<float*>(dynamic_shared() + kStagingBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = blockIdx.x * kRows;

  uint32_t a[2][4];  // two steps along k
  for (int step = 0; step < 2; ++step) {
    const int row = first_row + lane / 4, k = 32 * warp + 16 * step + 2 * (lane % 4);
    a[step][0] = two_weights(call, row, k);
    a[step][1] = two_weights(call, row + 8, k);
    a[step][2] = two_weights(call, row, k + 8);
    a[step][3] = two_weights(call, row + 8, k + 8);
  }

  for (int t = 0; t < call.T; ++t) {
    const __nv_bfloat16* h = call.h + t % 2 * kColumns * kHidden;
    __nv_bfloat16* next = call.h + (t + 1) % 2 * kColumns * kHidden;
    const int chunk = 8 * threadIdx.x;  // 16 bytes of h for each thread
    copy_async_16(true, shared_address(staging + chunk / kHidden * kPitch + chunk % kHidden),
                  h + chunk);
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    uint32_t words[4];
    load_matrices(words, shared_address(staging + lane % 8 * kPitch + 32 * warp + lane / 8 * 8));
    float d[4] = {};
    for (int step = 0; step < 2; ++step) {
      const uint32_t b[2] = {words[2 * step], words[2 * step + 1]};
      multiply_add(__nv_bfloat16{}, d, a[step], b);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      sums[warp * kSums + row * kColumns + column] = d[i];
    }
    __syncthreads();

    for (int i = threadIdx.x; i < kSums; i += kThreads) {
      const int row = first_row + i / kColumns, column = i % kColumns;
      const float sum = sums[i] + sums[kSums + i] + call.x[t * kHidden + row];
      next[column * kHidden + row] = __float2bfloat16_rn(tanhf(sum));
    }
    __syncthreads();

    if (threadIdx.x == 0) {
      arrive(call.counter);
      while (poll(call.counter) < static_cast<unsigned>(t + 1) * kBlocks) {
      }
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t run(const Recurrence& call) {
  cudaMemsetAsync(call.counter, 0, sizeof *call.counter, nullptr);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.attrs = &cooperative;
  config.numAttrs = call.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, recurrence_kernel, call);
}

}  // namespace fastlstm::harness
