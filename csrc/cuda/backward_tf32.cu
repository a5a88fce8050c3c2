#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_tf32(int kernel, bool is_plain) {
  return backward_variant<Tf32Element>(kernel, is_plain);
}

}  // namespace fastlstm::cuda
