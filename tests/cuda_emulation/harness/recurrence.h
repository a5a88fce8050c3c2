#pragma once

#include "cuda/primitives.cuh"

namespace fastlstm::harness {

constexpr int kHidden = 64;

struct Recurrence {
  int T;
  const __nv_bfloat16* weight;  // (64, 64)
  const float* x;               // (T, 64)
  __nv_bfloat16* h;             // (2, 8, 64): the first is read, the last written is T % 2
  unsigned* counter;
  bool cooperative;
};

cudaError_t run(const Recurrence& call);

}  // namespace fastlstm::harness
