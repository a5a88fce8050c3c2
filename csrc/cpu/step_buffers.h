// What a block of steps of the backward pass leaves for the gradients: the numbers of its steps,
// and the list of its rows.
#pragma once

#include "ring_buffer.h"

namespace fastlstm::cpu {
namespace {

// The most rows of a chunk, whose products are summed up before they are added to the gradients of
// weights. 256 rows take 2% longer with H = 64 and with H >= 512.
template <class S>
constexpr int64_t kChunkRows = 2 * kChunk<S>;

// The numbers of the steps of a block that the recurrence writes and Gradients reads.
template <class S>
class StepBuffers : Arrays<S> {
  using Arrays<S>::out, Arrays<S>::time_from_end, Arrays<S>::row_of, Arrays<S>::shape_;

 public:
  StepBuffers(const LstmBackward& call, int64_t block, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        digates_(shape_, block, 4 * shape_.H, workspace),
        dh_(shape_, block, shape_.P, workspace),
        hidden_(shape_, block, shape_.P ? shape_.H : 0, workspace) {}

  // Whether digates are written to the caller's dinput, because they are its result.
  bool digates_are_dinput() const { return call_.dinput && !shape_.I; }
  // (4H)
  S* digates(int64_t s, int64_t b, int64_t g) const {
    if (!digates_are_dinput()) return digates_.row(s, b, g);
    return out(call_.dinput) + row_of(time_from_end(g, s), b, g) * 4 * shape_.H;
  }
  // With a projection: (P) the gradient of h, and (H) the cell's output before the projection.
  S* dh(int64_t s, int64_t b, int64_t g) const { return dh_.row(s, b, g); }
  S* hidden(int64_t s, int64_t b, int64_t g) const { return hidden_.row(s, b, g); }

 private:
  const LstmBackward& call_;
  const RingBuffer<S> digates_, dh_, hidden_;
};

// Pointers to the rows of a chunk: steps of one group within the rows' lengths.
template <class S>
struct Chunk {
  int64_t count;
  const S* digates[kChunkRows<S>];
  const S* x[kChunkRows<S>];
  const S* h[kChunkRows<S>];     // h'
  const S* mask[kChunkRows<S>];  // a factor of h'; only with that option
  const S* dh[kChunkRows<S>];
  const S* hidden[kChunkRows<S>];
  S* dx[kChunkRows<S>];
};

}  // namespace
}  // namespace fastlstm::cpu
