#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_tf32(int kernel) { return forward_variant<Tf32Element>(kernel); }

}  // namespace fastlstm::cuda
