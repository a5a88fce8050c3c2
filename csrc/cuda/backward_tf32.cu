#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_tf32(int kernel, bool is_plain) {
  return backward_variant<Tf32Element>(kernel, is_plain);
}

BackwardOptionsKernel backward_tf32(int kernel) {
  return backward_variant<Tf32Element, false, RecurrenceBackwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
