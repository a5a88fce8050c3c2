// The forward pass, compiled once per instruction set.
#include "forward.h"

#include "kernels.h"
#include "single_step.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

// Calls visit(Stored{}) for each way in which weights are packed for the caller to keep: B, which
// decides whether float32 is multiplied in pieces, is another at the next call.
template <class Visit>
void for_each_packing(const LstmShape& shape, const Visit& visit) {
  LstmShape few = shape;
  few.B = 0;
  with_stored(few, visit);
  if constexpr (kOnTiles<SplitFloat>) {
    if (shape.dtype == DType::float32) visit(SplitFloat{});
  }
}

// A call of no steps, which does nothing but pack.
LstmForward packing_call(const LstmForward& call) {
  LstmForward packing{};
  packing.shape.dtype = call.shape.dtype;
  packing.shape.G = call.shape.G, packing.shape.H = call.shape.H;
  packing.shape.I = call.shape.I, packing.shape.P = call.shape.P;
  packing.weight_ih = call.weight_ih, packing.weight_hh = call.weight_hh;
  packing.prepacked = call.prepacked;
  packing.workspace = call.workspace;
  return packing;
}

}  // namespace

bool forward_streams(const LstmShape& shape) {
  if (is_single_step(shape)) return true;
  return with_stored(shape, [&](auto stored) { return streams<decltype(stored)>(shape); });
}

size_t forward_prepacked(const LstmShape& shape) {
  size_t bytes = 0;
  for_each_packing(
      shape, [&](auto stored) { bytes += Forward<decltype(stored)>::prepacked_bytes(shape); });
  return bytes;
}

size_t forward_workspace(const LstmShape& shape, int num_threads) {
  size_t bytes = greater(workspace_for<Forward, LstmForward>(shape, num_threads),
                         single_step_workspace<SingleForward, LstmForward>(shape, num_threads));
  LstmForward call{};
  call.shape = shape;
  const LstmForward packing = packing_call(call);
  for_each_packing(shape, [&](auto stored) {
    const size_t least = Forward<decltype(stored)>(packing, num_threads).workspace_bytes();
    bytes = least > bytes ? least : bytes;
  });
  return bytes;
}

void forward(const LstmForward& call, int num_threads) {
  with_stored(call.shape, [&](auto stored) {
    using S = decltype(stored);
    if (is_single_step(call.shape) && !call.prepacked && !call.options) {
      return SingleForward<S>(call, num_threads).run();
    }
    LstmForward mine = call;
    LstmForward packing = packing_call(call);
    for_each_packing(call.shape, [&](auto other) {
      if (!call.prepacked) return;
      using Other = decltype(other);
      if constexpr (std::is_same_v<S, Other>) {
        mine.prepacked = packing.prepacked;
      } else if (!call.is_prepacked) {
        Forward<Other>(packing, num_threads).run();
      }
      packing.prepacked =
          static_cast<char*>(packing.prepacked) + Forward<Other>::prepacked_bytes(call.shape);
    });
    Forward<S>(mine, num_threads).run();
  });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
