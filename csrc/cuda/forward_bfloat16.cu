#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_bfloat16(int kernel, bool is_plain) {
  return forward_variant<BFloat16Element>(kernel, is_plain);
}

}  // namespace fastlstm::cuda
