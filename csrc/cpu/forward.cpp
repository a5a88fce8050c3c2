// The forward pass, compiled once per instruction set.
#include "forward.h"

#include "kernels.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
bool forward_streams(const LstmShape& shape) {
  return with_stored(shape.dtype,
                     [&](auto stored) { return Forward<decltype(stored)>::streams(shape); });
}

size_t forward_packed(const LstmShape& shape) {
  return with_stored(shape.dtype,
                     [&](auto stored) { return Forward<decltype(stored)>::packed_bytes(shape); });
}

size_t forward_workspace(const LstmShape& shape, int num_threads) {
  return workspace_for<Forward, LstmForward>(shape, num_threads);
}

void forward(const LstmForward& call, int num_threads) {
  with_stored(call.shape.dtype,
              [&](auto stored) { Forward<decltype(stored)>(call, num_threads).run(); });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
