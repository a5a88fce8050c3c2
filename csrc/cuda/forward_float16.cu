#include "cuda/forward.cuh"

namespace fastlstm::cuda {

ForwardKernel forward_float16(int kernel) { return forward_variant<Float16Element>(kernel); }

}  // namespace fastlstm::cuda
