// A block of threads in a launch: its group, tile of the batch and slice of the hidden units; the
// barrier between the slices of a tile, and between layers that feed each other; and flags for what
// each row of the tile does at each step.
#pragma once

#include "cuda/primitives.cuh"
#include "cuda/recurrence.h"
#include "row_steps.h"

namespace fastlstm::cuda {

// What a row does at a step.
enum Flags : unsigned {
  kAbsent = 1,   // there is no such row: the last tile may have fewer
  kReads = 2,    // the step is within its length
  kLast = 4,     // its last step, in the order of the forward pass
  kFirst = 8,    // its first one
  kAfresh = 16,  // no state comes into this step
  kCuts = 32,    // nothing is carried over from the step before, in the order of this pass
  kDue = 64,     // backward: all its steps are done, and the product is its dhx
};

class Block {
 public:
  __device__ __forceinline__ Block(const Shape& shape, const Recurrence& r)
      : shape_(shape),
        r_(r),
        slice(blockIdx.x % r.slices),
        tile(blockIdx.x / r.slices % r.tiles),
        group(blockIdx.x / r.slices / r.tiles),
        first_row(tile * r.tile_rows),
        rows(min(r.tile_rows, static_cast<int>(shape.B) - first_row)),
        reverse(r.reverse[group]) {}

  // Sets lengths and the flags of absent rows. To be called before the other members.
  __device__ __forceinline__ void prepare() const {
    int* lengths = reinterpret_cast<int*>(dynamic_shared() + r_.lengths);
#pragma unroll 1
    for (int row = threadIdx.x; row < r_.passes * r_.pass_rows; row += kThreads) {
      if (row < rows) {
        lengths[row] = shape_.lengths ? static_cast<int>(shape_.lengths[first_row + row]) : steps();
      } else {
        for (int s = 0; s < kFlagSteps; ++s) *flags_at(s, row) = kAbsent;
      }
    }
  }

  __device__ __forceinline__ int length(int row) const {
    return reinterpret_cast<const int*>(dynamic_shared() + r_.lengths)[row];
  }
  __device__ __forceinline__ unsigned flags(int s, int row) const { return *flags_at(s, row); }

  // The time of step s of the forward pass, and of the backward pass.
  __device__ __forceinline__ int time_of(int s) const { return reverse ? steps() - 1 - s : s; }
  __device__ __forceinline__ int time_from_end(int s) const {
    return reverse ? s : steps() - 1 - s;
  }
  __device__ __forceinline__ int steps() const { return static_cast<int>(shape_.T); }

  // The flags of every row at step s, if there are neither lengths nor resets.
  __device__ __forceinline__ unsigned plain_forward_flags(int s) const {
    return s + 1 < steps() ? kReads : kReads | kLast;
  }
  __device__ __forceinline__ unsigned plain_backward_flags(int s) const {
    if (s == steps()) return s > 0 ? kDue : 0u;
    return kReads | (s == 0 ? kLast : 0u) | (s + 1 == steps() ? kFirst : 0u);
  }

  // Set the flags of step s, which may be read after a __syncthreads. At step T no row reads.
  __device__ __forceinline__ void set_forward_flags(int s) const {
    const int t = time_of(s);
#pragma unroll 1
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      const RowSteps row_steps(shape_, first_row + row, reverse, length(row));
      unsigned flags = 0;
      if (s < steps() && row_steps.has_step(t)) {
        flags = kReads;
        if (t == row_steps.last()) flags |= kLast;
        if (row_steps.is_reset(t)) flags |= kCuts;
      }
      *flags_at(s, row) = flags;
    }
  }
  __device__ __forceinline__ void set_backward_flags(int s) const {
    const int t = time_from_end(s);
#pragma unroll 1
    for (int row = threadIdx.x; row < rows; row += kThreads) {
      const RowSteps row_steps(shape_, first_row + row, reverse, length(row));
      unsigned flags = 0;
      if (s < steps() && row_steps.has_step(t)) {
        flags = kReads;
        if (t == row_steps.first()) flags |= kFirst;
        if (row_steps.is_reset(t)) flags |= kAfresh;
        if (t == row_steps.last()) {
          flags |= kLast;
        } else if (row_steps.is_reset(row_steps.after(t))) {
          flags |= kCuts;
        }
      } else if (s > 0 && row_steps.length > 0 && time_from_end(s - 1) == row_steps.first()) {
        flags = kDue;
        if (row_steps.is_reset(row_steps.first())) flags |= kCuts;
      }
      *flags_at(s, row) = flags;
    }
  }

  // Whether another layer feeds this block's layer, and whether it feeds another one, group `fed`.
  __device__ __forceinline__ bool is_fed() const { return has_group(group - r_.feeds); }
  __device__ __forceinline__ bool feeds() const { return has_group(fed()); }
  __device__ __forceinline__ int fed() const { return group + r_.feeds; }

  // The barrier of a tile, if it has several blocks. After its n-th `wait`, counting from 1, a
  // block sees what the blocks of its group and tile wrote before their n-th `arrive`, and what the
  // blocks of a layer that feeds it wrote before their (n + 1)-th. A layer that it feeds has then
  // arrived n - 1 times: it has read the operand that is overwritten next.
  // kPlain: there are several blocks. kLayers: groups may be layers.
  template <bool kPlain, bool kLayers>
  __device__ __forceinline__ void arrive() const {
    if (!kPlain && r_.stages == 0) return;
    __syncthreads();
    if (threadIdx.x == 0) cuda::arrive(own_counter<kPlain || kLayers>());
  }
  template <bool kPlain, bool kLayers>
  __device__ __forceinline__ void wait(int n) const {
    if (!kPlain && r_.stages == 0) return;
    // Thread 0 of the last warp, which has the fewest cells, waits for the group itself, 1 for the
    // layer that feeds it, 2 for the layer it feeds.
    const int thread = static_cast<int>(threadIdx.x) - (kThreads - 32);
    const int ahead = thread == 2 ? -1 : thread;
    const int of = group - ahead * r_.feeds;
    if (thread == 0 || (kLayers && thread > 0 && thread < 3 && has_group(of))) {
      const unsigned all = static_cast<unsigned>(n + ahead) * r_.slices;
      const unsigned* arrived = kPlain || kLayers ? counter(of) : own_counter<false>();
      while (static_cast<int>(poll(arrived) - all) < 0) {
      }
    }
    __syncthreads();
  }

 private:
  __device__ __forceinline__ unsigned char* flags_at(int s, int row) const {
    return dynamic_shared() + r_.flags + (s & (kFlagSteps - 1)) * r_.passes * r_.pass_rows + row;
  }
  __device__ __forceinline__ bool has_group(int of) const {
    return r_.feeds != 0 && of >= 0 && of < static_cast<int>(shape_.G);
  }
  // The counter of the block's group and tile, computed anew each time unless `keep`: the kernels
  // for calls with options have no registers for its address.
  template <bool keep>
  __device__ __forceinline__ unsigned* own_counter() const {
    if constexpr (keep) return counter(group);
    const int block = opaque(static_cast<int>(blockIdx.x));
    return r_.counters + block / r_.slices * (kCounterBytes / sizeof(unsigned));
  }
  __device__ __forceinline__ unsigned* counter(int of) const {
    return r_.counters + (of * r_.tiles + tile) * (kCounterBytes / sizeof(unsigned));
  }

  const Shape& shape_;
  const Recurrence& r_;

 public:
  const int slice, tile, group;
  const int first_row, rows;
  const bool reverse;
};

}  // namespace fastlstm::cuda
