#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_tf32x3(int kernel) { return forward_variant<Tf32x3Element>(kernel); }

}  // namespace fastlstm::cuda
