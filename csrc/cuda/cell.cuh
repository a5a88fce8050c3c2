// What the kernels of one step share: their arguments, loads, and the launch.
#pragma once

#include "cuda/launch.h"
#include "cuda/options.cuh"
#include "cuda/recurrence.h"
#include "row_steps.h"

namespace fastlstm::cuda {
namespace {

template <class Call>
struct Arguments {
  Call call;
  ReverseBits reverse;
};

template <class Stored>
__device__ __forceinline__ Peepholes<Sum<Stored>> load_peepholes(const Shape& shape,
                                                                 const LstmWeight& weight_ch,
                                                                 int group, int unit) {
  if (!weight_ch.data) return {};
  const Stored* weight =
      static_cast<const Stored*>(weight_ch.data) + group * weight_ch.stride + unit;
  return {to_sum(weight[0]), to_sum(weight[shape.H]), to_sum(weight[2 * shape.H])};
}

__device__ __forceinline__ RowSteps steps_of_row(const Shape& shape, bool reverse, int row) {
  return RowSteps(shape, row, reverse, shape.lengths ? shape.lengths[row] : shape.T);
}

// The share of the state before that a unit keeps; `keep` is (T, B, G, H) or null.
template <class Stored>
__device__ __forceinline__ Sum<Stored> share(const void* keep, const int64_t (&stride)[3],
                                             int64_t t, int row, int group, int unit) {
  if (!keep) return 0;
  return to_sum(
      static_cast<const Stored*>(keep)[t * stride[0] + row * stride[1] + group * stride[2] + unit]);
}

template <class Call>
using Kernel = void (*)(Arguments<Call>);

// Launches the kernel of the call's dtype, which is one of a kernel for each type that is stored.
template <class Call>
void launch_for_dtype(const Call& call, const Kernel<Call> (&kernels)[4], int64_t blocks,
                      int threads, size_t shared_bytes, Stream stream) {
  const Shape& shape = call.shape;
  if (shape.G == 0 || shape.B == 0 || shape.H == 0) return;
  // A grid has fewer than 2^31 blocks, and kernels count rows in 32 bits.
  const int64_t rows = shape.G * shape.B * ((shape.H + kThreads - 1) / kThreads);
  if (rows > kMostRows) {
    throw std::invalid_argument("B: expected at most " + std::to_string(kMostRows) +
                                " rows of up to " + std::to_string(kThreads) +
                                " units in all groups, got " + std::to_string(rows));
  }
  const DeviceGuard guard(stream.device);
  Arguments<Call> arguments{call, {}};
  arguments.reverse.set(shape);
  launch(kernels[static_cast<int>(shape.dtype)],
         {stream.device, blocks, threads, shared_bytes, false, stream.stream}, arguments);
}

}  // namespace
}  // namespace fastlstm::cuda
