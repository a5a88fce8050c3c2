// The arguments of a mask that is drawn.
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

}  // namespace fastlstm::cpu
