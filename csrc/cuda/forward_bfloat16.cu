#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_bfloat16(int kernel, bool is_plain) {
  return forward_variant<BFloat16Element>(kernel, is_plain);
}

ForwardOptionsKernel forward_bfloat16(int kernel) {
  return forward_variant<BFloat16Element, false, RecurrenceForwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
