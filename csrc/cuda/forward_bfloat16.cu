#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_bfloat16(int kernel) {
  return forward_variant<BFloat16Element, Products::tf32>(kernel);
}

}  // namespace fastlstm::cuda
