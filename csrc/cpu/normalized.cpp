// Both passes of LSTMs with layer norm, compiled once per instruction set.
#include "kernels.h"
#include "normalized_backward.h"
#include "normalized_forward.h"

namespace fastlstm::cpu::FASTLSTM_ISA {

size_t layer_norm_forward_workspace(const LstmShape& shape, int num_threads) {
  return workspace_for<NormalizedForward, LayerNormForward>(shape, num_threads);
}

void layer_norm_forward(const LayerNormForward& call, int num_threads) {
  with_stored(call.shape,
              [&](auto stored) { NormalizedForward<decltype(stored)>(call, num_threads).run(); });
}

size_t layer_norm_backward_workspace(const LstmShape& shape, int num_threads) {
  return workspace_for<NormalizedBackward, LayerNormBackward>(shape, num_threads);
}

void layer_norm_backward(const LayerNormBackward& call, int num_threads) {
  with_stored(call.shape,
              [&](auto stored) { NormalizedBackward<decltype(stored)>(call, num_threads).run(); });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
