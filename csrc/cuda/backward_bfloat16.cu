#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_bfloat16(int kernel, bool is_plain) {
  return backward_variant<BFloat16Element>(kernel, is_plain);
}

BackwardOptionsKernel backward_bfloat16(int kernel) {
  return backward_variant<BFloat16Element, false, RecurrenceBackwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
