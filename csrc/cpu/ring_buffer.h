// A ring buffer of the last few steps; and h of the steps, in y or in a ring buffer.
#pragma once

#include "arrays.h"

namespace fastlstm::cpu {
namespace {

// Numbers of every row at every step of a block, and at the step before: (G, block + 1, B, n).
template <class S>
class RingBuffer {
  static constexpr int64_t kLine = 64 / sizeof(S);

 public:
  RingBuffer(const LstmShape& shape, int64_t block, int64_t n, Workspace& workspace)
      : B_(shape.B),
        steps_(block + 1),
        stride_((ceil_div(n, kLine) | 1) * kLine),
        data_(workspace.take<S>(n ? shape.G * steps_ * B_ * stride_ : 0)) {}

  S* row(int64_t s, int64_t b, int64_t g) const {
    return data_ + ((g * steps_ + s % steps_) * B_ + b) * stride_;
  }

 private:
  const int64_t B_, steps_;
  const int64_t stride_;  // an odd number of cache lines: rows a power of two apart would fall into
                          // few sets of the cache
  S* const data_;
};

// h of the steps: in y, or, if there is no y, the last ones in a ring buffer.
template <class S>
class HiddenStates : Arrays<S> {
  using Arrays<S>::out, Arrays<S>::time_of, Arrays<S>::row_of, Arrays<S>::hidden_size_;

 public:
  HiddenStates(const LstmShape& shape, void* y, int64_t block, Workspace& workspace)
      : Arrays<S>(shape), y_(out(y)), ring_(shape, block, block ? hidden_size_ : 0, workspace) {}

  bool in_y() const { return y_ != nullptr; }
  // (P)
  S* at(int64_t t, int64_t b, int64_t g) const {
    return y_ ? y_ + row_of(t, b, g) * hidden_size_ : in_ring(t, b, g);
  }
  // (P) always in the ring buffer.
  S* in_ring(int64_t t, int64_t b, int64_t g) const { return ring_.row(time_of(g, t), b, g); }

 private:
  S* const y_;
  const RingBuffer<S> ring_;
};

}  // namespace
}  // namespace fastlstm::cpu
