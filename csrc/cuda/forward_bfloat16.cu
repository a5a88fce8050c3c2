#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_bfloat16(int kernel) { return forward_variant<BFloat16Element>(kernel); }

}  // namespace fastlstm::cuda
