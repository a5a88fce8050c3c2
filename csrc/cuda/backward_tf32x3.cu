#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_tf32x3(int kernel) { return backward_variant<Tf32x3Element>(kernel); }

}  // namespace fastlstm::cuda
