#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_float16(int kernel, bool is_plain) {
  return forward_variant<Float16Element>(kernel, is_plain);
}

ForwardOptionsKernel forward_float16(int kernel) {
  return forward_variant<Float16Element, false, RecurrenceForwardWithOptions>(kernel);
}

}  // namespace fastlstm::cuda
