// Numbers as tensor cores read them, one product, and one sum over a warp.
#include <stdexcept>

#include "cuda/primitives.cuh"
#include "numbers.h"

namespace fastlstm::harness {
namespace {

using namespace cuda;

__nv_bfloat16 convert(float value, __nv_bfloat16) { return __float2bfloat16_rn(value); }
__half convert(float value, __half) { return __float2half_rn(value); }
Tf32 convert(float value, Tf32) { return {__uint_as_float(round_to_tf32(value))}; }

float convert_back(__nv_bfloat16 value) { return __bfloat162float(value); }
float convert_back(__half value) { return __half2float(value); }
float convert_back(Tf32 value) { return value.value; }

struct Product {
  const float *a, *b;
  float* d;
};

// Each half of K is 16 bytes of a row, and so a row of one of ldmatrix's matrices.
template <class Number>
__global__ void product_kernel(const Product call) {
  constexpr int kHalf = 16 / sizeof(Number), kK = 2 * kHalf;
  auto* a = reinterpret_cast<Number*>(dynamic_shared());
  auto* b = a + 16 * kK;
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * kK; i += 32) a[i] = convert(call.a[i], Number{});
  for (int i = lane; i < 8 * kK; i += 32) b[i] = convert(call.b[i], Number{});
  __syncwarp();

  uint32_t a_words[4], b_words[4];
  load_matrices(a_words,
                shared_address(a + (lane % 8 + lane / 8 % 2 * 8) * kK + lane / 16 * kHalf));
  load_matrices(b_words, shared_address(b + lane % 8 * kK + lane / 8 % 2 * kHalf));
  float d[4] = {};
  const uint32_t b_fragment[2] = {b_words[0], b_words[1]};
  multiply_add(Number{}, d, a_words, b_fragment);
  for (int i = 0; i < 4; ++i) {
    call.d[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
  }
}

struct Numbers {
  float* values;
};

__global__ void warp_sum_kernel(const Numbers call) {
  float sum = call.values[threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  call.values[threadIdx.x] = sum;
}

template <class Function>
void with_number(const std::string& format, Function function) {
  if (format == "bfloat16") return function(__nv_bfloat16{});
  if (format == "float16") return function(__half{});
  if (format == "tf32") return function(Tf32{});
  throw std::invalid_argument("format: there is no " + format);
}

}  // namespace

void round_trip(const std::string& format, uintptr_t from, uintptr_t to, int64_t count) {
  with_number(format, [&](auto number) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = reinterpret_cast<const float*>(from)[i];
      reinterpret_cast<float*>(to)[i] = convert_back(convert(value, number));
    }
  });
}

void product(const std::string& format, uintptr_t a, uintptr_t b, uintptr_t d) {
  const Product call{reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b),
                     reinterpret_cast<float*>(d)};
  with_number(format, [&](auto number) {
    cudaLaunchConfig_t config{};
    config.blockDim = dim3(32);
    config.dynamicSmemBytes = 24 * 32;
    cudaLaunchKernelEx(&config, product_kernel<decltype(number)>, call);
  });
}

void warp_sum(uintptr_t numbers) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(32);
  cudaLaunchKernelEx(&config, warp_sum_kernel, Numbers{reinterpret_cast<float*>(numbers)});
}

}  // namespace fastlstm::harness
