#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_float16(int kernel) { return backward_variant<Float16Element>(kernel); }

}  // namespace fastlstm::cuda
