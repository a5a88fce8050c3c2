// The rows and the hidden unit for which a thread computes the cell, and their addresses: always
// the same unit, and some rows of each pass. The base of both passes.
#pragma once

#include "cuda/product.cuh"

namespace fastlstm::cuda {

template <class Element, int kNTiles>
class ThreadRows {
 protected:
  using Stored = typename Element::Stored;
  using Bits = typename Element::Bits;
  static constexpr int kPassRows = 8 * kNTiles;

  __device__ __forceinline__ ThreadRows(const Shape& shape, const Recurrence& r)
      : shape_(shape),
        r_(r),
        block_(shape, r),
        operand_(shape, r, block_),
        H_(static_cast<unsigned>(shape.H)),
        unit_(block_.slice * r.units + threadIdx.x % r.units),
        first_row_(threadIdx.x / r.units),
        row_step_(kThreads / r.units) {}

  __device__ __forceinline__ static const Stored* in(const void* pointer) {
    return static_cast<const Stored*>(pointer);
  }
  __device__ __forceinline__ static Stored* out(void* pointer) {
    return static_cast<Stored*>(pointer);
  }

  // Calls visit(row) for this thread's rows of the tile.
  template <class Visit>
  __device__ __forceinline__ void for_each_row(const Visit& visit) const {
    if (unit_ >= H_) return;
    for (int row = first_row_; row < block_.rows; row += row_step_) visit(row);
  }

  // Calls visit(j, row, flags of the row at step s) for the j-th of this thread's rows of a pass.
  template <class Visit>
  __device__ __forceinline__ void for_each_row_of(int s, int pass, const Visit& visit) const {
    if (unit_ >= H_) return;
#pragma unroll
    for (int j = 0; j < kThreadRows; ++j) {
      const int in_pass = first_row_ + j * row_step_, row = pass * kPassRows + in_pass;
      if (in_pass >= kPassRows) break;
      const unsigned flags = block_.flags(s, row);
      if (flags & kAbsent) break;
      visit(j, row, flags);
    }
  }

  __device__ __forceinline__ Peepholes<float> load_peepholes(const LstmWeight& weight_ch) const {
    if (!weight_ch.data || unit_ >= H_) return {};
    const Stored* weight = in(weight_ch.data) + block_.group * weight_ch.stride + unit_;
    return {to_sum(weight[0]), to_sum(weight[H_]), to_sum(weight[2 * H_])};
  }

  // The offset of this thread's unit in an array (T, B, G, ...) with strides; of a row in y or
  // reserve, in rows; and of the unit in an array (G, B, H).
  __device__ __forceinline__ int64_t offset(const int64_t (&stride)[3], int t, int row) const {
    return t * stride[0] + (block_.first_row + row) * stride[1] + block_.group * stride[2] + unit_;
  }
  __device__ __forceinline__ int64_t place(int t, int row) const {
    return (t * shape_.B + block_.first_row + row) * r_.between_rows +
           block_.group * r_.between_groups;
  }
  __device__ __forceinline__ int64_t state(int row) const {
    return (block_.group * shape_.B + block_.first_row + row) * shape_.H + unit_;
  }

  // The hidden unit of the operand at which this group's own part begins.
  __device__ __forceinline__ unsigned own_units() const { return r_.feeds ? H_ : 0; }

  // The matrix that unit k of the operand is multiplied with, W_ih or W_hh; null if there is none,
  // as for padding. k becomes the unit's column in it.
  template <class Call>
  __device__ __forceinline__ const Bits* weight_of(const Call& call, unsigned& k) const {
    if (k < own_units()) {
      if (!block_.is_fed()) return nullptr;
      const int array = r_.feeds > 0 ? block_.group - 1 : block_.group;
      return static_cast<const Bits*>(call.weight_ih.data) + array * call.weight_ih.stride;
    }
    k -= own_units();
    if (k >= H_) return nullptr;
    return static_cast<const Bits*>(call.weight_hh.data) + block_.group * call.weight_hh.stride;
  }

  // c or dc of a row, which is carried from step to step.
  __device__ __forceinline__ float& carried(int row) const {
    return reinterpret_cast<float*>(dynamic_shared() +
                                    r_.state)[row * r_.units + threadIdx.x % r_.units];
  }

  const Shape& shape_;
  const Recurrence& r_;
  const Block block_;
  Operand operand_;
  const unsigned H_;
  const unsigned unit_;  // of the group
  const int first_row_;  // of this thread, in a pass and in the tile
  const int row_step_;
};

}  // namespace fastlstm::cuda
