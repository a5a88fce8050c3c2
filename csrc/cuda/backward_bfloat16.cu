#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_bfloat16(int kernel) { return backward_variant<BFloat16Element>(kernel); }

}  // namespace fastlstm::cuda
