// The loss of a read-out whose values are Bernoulli variables, and its gradient.
#pragma once

#include <cstdint>

#include "../lstm.h"

namespace fastlstm::cpu {

// Logits a and targets t, `count` numbers each. Either are float32 or bfloat16, or both float64.
struct BernoulliLoss {
  DType logits_dtype, targets_dtype;
  const void* logits;
  const void* targets;
  void* gradient;  // of the logits, in their dtype; null if it is not wanted
  int64_t count;
  double scale;  // a factor of the gradient, not of the loss
};

struct BernoulliLossResult {
  double loss;  // the sum of softplus(a) - t a
  // Whether all targets lie in [0, 1]; also false if one is -0.
  bool targets_in_range;
};

}  // namespace fastlstm::cpu
