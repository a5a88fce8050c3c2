#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_float16(int kernel, bool is_plain) {
  return backward_variant<Float16Element>(kernel, is_plain);
}

BackwardOptionsKernel backward_float16(int kernel) {
  return backward_variant<Float16Element, false, RecurrenceBackwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
