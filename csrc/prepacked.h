// One layer's weights in the kernels' layout, kept from call to call.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "cpu/kernels.h"

namespace fastlstm {

// What LstmForward::prepacked points to.
class PrepackedMemory {
 public:
  explicit PrepackedMemory(size_t bytes);
  ~PrepackedMemory();
  PrepackedMemory(const PrepackedMemory&) = delete;
  PrepackedMemory& operator=(const PrepackedMemory&) = delete;
  void* data() const { return data_; }

 private:
  void* const data_;
};

// Several threads may use one object.
class PrepackedWeights {
 public:
  using Memory = std::shared_ptr<PrepackedMemory>;

  // The packed weights of a call's layer; the memory lives as long as somebody holds it. Every call
  // computes a checksum of the weights and packs them again only if it has changed: a checksum
  // reads at the speed of memory, packing takes several times as long.
  Memory of(const LstmForward& call, const cpu::Kernels& kernels, int num_threads);

  Memory memory() const;  // null before the first call

 private:
  struct Key {
    DType dtype;
    int64_t G, H, I, P;
    const cpu::Kernels* kernels;
    uint64_t checksum;

    bool operator==(const Key& other) const {
      return dtype == other.dtype && G == other.G && H == other.H && I == other.I && P == other.P &&
             kernels == other.kernels && checksum == other.checksum;
    }
  };

  mutable std::mutex mutex_;
  Key key_{};
  Memory memory_;
};

}  // namespace fastlstm
