#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_tf32(int kernel, bool is_plain) {
  return forward_variant<Tf32Element>(kernel, is_plain);
}

ForwardOptionsKernel forward_tf32(int kernel) {
  return forward_variant<Tf32Element, false, RecurrenceForwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
