#include "cuda/backward.cuh"

namespace fastlstm::cuda {

BackwardKernel backward_tf32(int kernel) { return backward_variant<Tf32Element>(kernel); }

}  // namespace fastlstm::cuda
