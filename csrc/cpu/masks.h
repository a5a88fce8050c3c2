// The arguments of a mask that is drawn, and of one that is applied.
#pragma once

#include "../lstm.h"

namespace fastlstm::cpu {

// Each number is `dropped` with probability p, rounded to 16 bits, and else `kept`. The numbers
// depend on the seed and on their place alone, not on the instruction set or the threads.
struct Mask {
  DType dtype;
  uint64_t seed;
  double p, dropped, kept;
  int64_t count;
  void* to;  // (count)
};

// mask * from, which may be the same memory as `to`.
struct MaskProduct {
  DType dtype;
  const void *mask, *from;  // (count)
  void* to;                 // (count)
  int64_t count;
};

}  // namespace fastlstm::cpu
