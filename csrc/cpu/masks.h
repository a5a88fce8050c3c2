// The arguments of a mask that is drawn, and of weights that are dropped.
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

// `to` is `from` with zeros in some places, and elsewhere divided by 1 - p. They may be the same
// memory.
struct WeightDropout {
  DType dtype;
  uint64_t seed;  // of a mask of zeros with probability p, and else ones
  double p;
  int64_t count;
  const void* from;  // (count)
  uint8_t* is_kept;  // (count) the mask
  void* to;          // (count)
};

}  // namespace fastlstm::cpu
