#include "prepacked.h"

#include <cstdlib>

#include "huge_pages.h"
#include "scratch.h"

namespace fastlstm {
namespace {

// A call of no steps, which does nothing but pack.
void pack(const LstmForward& call, const cpu::Kernels& kernels, int num_threads, void* prepacked) {
  LstmForward packing{};
  const LstmShape& shape = call.shape;
  packing.shape.dtype = shape.dtype;
  packing.shape.G = shape.G, packing.shape.H = shape.H;
  packing.shape.I = shape.I, packing.shape.P = shape.P;
  packing.weight_ih = call.weight_ih, packing.weight_hh = call.weight_hh;
  packing.prepacked = prepacked;
  Scratch scratch;
  packing.workspace = scratch.take(kernels.forward_workspace(packing.shape, num_threads));
  kernels.forward(packing, num_threads);
}

}  // namespace

PrepackedMemory::PrepackedMemory(size_t bytes) : data_(allocate_aligned(bytes)) {}
PrepackedMemory::~PrepackedMemory() { std::free(data_); }

PrepackedWeights::Memory PrepackedWeights::of(const LstmForward& call, const cpu::Kernels& kernels,
                                              int num_threads) {
  const LstmShape& shape = call.shape;
  const Key key = {shape.dtype,
                   shape.G,
                   shape.H,
                   shape.I,
                   shape.P,
                   &kernels,
                   kernels.checksum(shape, call.weight_ih, call.weight_hh, num_threads)};
  {
    const std::lock_guard lock(mutex_);
    if (memory_ && key == key_) return memory_;
  }
  const auto packed = std::make_shared<PrepackedMemory>(kernels.forward_prepacked(shape));
  pack(call, kernels, num_threads, packed->data());
  const std::lock_guard lock(mutex_);
  key_ = key;
  return memory_ = packed;
}

PrepackedWeights::Memory PrepackedWeights::memory() const {
  const std::lock_guard lock(mutex_);
  return memory_;
}

}  // namespace fastlstm
