#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_bfloat16(int kernel) {
  return backward_variant<BFloat16Element, Products::tf32>(kernel);
}

}  // namespace fastlstm::cuda
