#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_tf32x3(int kernel, bool is_plain) {
  return forward_variant<Tf32x3Element>(kernel, is_plain);
}

ForwardOptionsKernel forward_tf32x3(int kernel) {
  return forward_variant<Tf32x3Element, false, RecurrenceForwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
