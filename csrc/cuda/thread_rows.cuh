// The rows and the hidden unit for which a thread computes the cell, and their addresses: always
// the same unit, and some rows of each pass. The base of both passes.
#pragma once

#include "cuda/product.cuh"

namespace fastlstm::cuda {

// If kPlain, there are several blocks for each group, one layer, few rows for each thread, and
// neither lengths nor resets, so that all rows have the same flags. kOptions: the call has options.
template <class Element, int kNTiles, Direction kDirection, bool kPlain, bool kOptions>
class ThreadRows {
 protected:
  using Stored = typename Element::Stored;
  using Bits = typename Element::Bits;
  static constexpr int kPassRows = 8 * kNTiles;
  static constexpr int kRows = kPlain ? kPlainThreadRows : kThreadRows;  // of a pass, of a thread

  __device__ __forceinline__ ThreadRows(const Shape& shape, const Recurrence& r)
      : shape_(shape),
        r_(r),
        block_(shape, r),
        operand_(r, block_),
        H_(static_cast<unsigned>(shape.H)),
        in_block_(threadIdx.x & (r.units - 1)),
        unit_(block_.slice * r.units + in_block_),
        first_row_(threadIdx.x >> r.unit_shift),
        state_(shared_memory() + find_state()),
        sums_(shared_memory() + find_sums()) {}

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
#pragma unroll 1
    for (int row = first_row_; row < block_.rows; row += r_.row_step) visit(row);
  }

  // Calls visit(j, row in the tile, flags of the row at step s) for the j-th of this thread's rows
  // of a pass.
  template <class Visit>
  __device__ __forceinline__ void for_each_row_of(int s, int pass, const Visit& visit) const {
    // Kernels with options compare anew each time: they have no register for the result.
    if ((kOptions ? opaque(unit_) : unit_) >= H_) return;
    const int end = min(kPassRows, block_.rows - pass * kPassRows);
    const unsigned of_all = kDirection == Direction::forward ? block_.plain_forward_flags(s)
                                                             : block_.plain_backward_flags(s);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int in_pass = first_row_ + j * r_.row_step, row = pass * kPassRows + in_pass;
      if (in_pass >= end) break;
      visit(j, row, kPlain ? of_all : block_.flags(s, row));
    }
  }

  __device__ __forceinline__ void set_flags(int s) const {
    if constexpr (kPlain) return;
    kDirection == Direction::forward ? block_.set_forward_flags(s) : block_.set_backward_flags(s);
  }
  __device__ __forceinline__ bool is_cut(int s, int row) const {
    return !kPlain && block_.flags(s, row) & kCuts;
  }

  __device__ __forceinline__ Peepholes<float> load_peepholes(const LstmWeight& weight_ch) const {
    if (!weight_ch.data || unit_ >= H_) return {};
    const Stored* weight = in(weight_ch.data) + block_.group * weight_ch.stride + unit_;
    return {to_sum(weight[0]), to_sum(weight[H_]), to_sum(weight[2 * H_])};
  }

  // The address of a row's unit at time t, in an array (T, B, G, ...) with strides; and in y, or
  // another array of its layout whose rows have `width` numbers. What is the same for all threads
  // comes first. Where a block keeps c on chip, the numbers of one step can be counted in 32 bits.
  template <class Number>
  __device__ __forceinline__ Number* at(Number* array, const int64_t (&stride)[3], int t,
                                        int row) const {
    array += t * stride[0] + block_.first_row * stride[1] + block_.group * stride[2];
    return array + (static_cast<unsigned>(row) * stride[1] + unit_);
  }
  template <class Number>
  __device__ __forceinline__ Number* at(Number* array, unsigned width, int t, int row) const {
    array += (t * shape_.B * r_.between_rows + block_.group * r_.between_groups) * width;
    const unsigned rows = (block_.first_row + row) * static_cast<unsigned>(r_.between_rows);
    return array + (rows * width + unit_);
  }
  // The offset of a row's unit in an array (G, B, H).
  __device__ __forceinline__ unsigned state_of(int row) const {
    return (block_.group * static_cast<unsigned>(shape_.B) + block_.first_row + row) * H_ + unit_;
  }

  // The hidden unit of the operand at which this group's own part begins.
  __device__ __forceinline__ unsigned own_units() const { return !kPlain && r_.feeds ? H_ : 0; }
  // Whether another layer feeds this block's layer, and whether it feeds another one.
  __device__ __forceinline__ bool is_fed() const { return !kPlain && block_.is_fed(); }
  __device__ __forceinline__ bool feeds() const { return !kPlain && block_.feeds(); }

  // The matrix that unit k of the operand is multiplied with, W_ih or W_hh; null if there is none,
  // as for padding. k becomes the unit's column in it.
  template <class Call>
  __device__ __forceinline__ const Bits* weight_of(const Call& call, unsigned& k) const {
    if (k < own_units()) {
      if (!is_fed()) return nullptr;
      const int array = r_.feeds > 0 ? block_.group - 1 : block_.group;
      return static_cast<const Bits*>(call.weight_ih.data) + array * call.weight_ih.stride;
    }
    k -= own_units();
    if (k >= H_) return nullptr;
    return static_cast<const Bits*>(call.weight_hh.data) + block_.group * call.weight_hh.stride;
  }

  // Whether 16 bytes at a multiple of 16 bytes of a row of weights are aligned, and in one matrix.
  template <class Call>
  __device__ __forceinline__ bool rows_are_aligned(const Call& call) const {
    const auto is_aligned = [](const LstmWeight& weight) {
      return (reinterpret_cast<uintptr_t>(weight.data) | weight.stride * sizeof(Bits)) % 16 == 0;
    };
    return H_ * sizeof(Bits) % 16 == 0 && is_aligned(call.weight_ih) && is_aligned(call.weight_hh);
  }

  // The addresses of c or dc and of the sums of this thread's first row. The kernels of plain calls
  // keep them in registers.
  __device__ __forceinline__ unsigned state() const {
    return kPlain ? state_ : shared_address(dynamic_shared()) + find_state();
  }
  __device__ __forceinline__ unsigned sums() const {
    return kPlain ? sums_ : shared_address(dynamic_shared()) + find_sums();
  }
  __device__ __forceinline__ unsigned find_state() const {
    return r_.state + threadIdx.x * sizeof(float);
  }
  __device__ __forceinline__ unsigned find_sums() const {
    return r_.sums + first_row_ * r_.sum_row +
           in_block_ * (kDirection == Direction::forward ? sizeof(float4) : sizeof(float));
  }

  // The address of c or dc of the j-th row of a pass, which is carried from step to step.
  __device__ __forceinline__ unsigned carried(int pass, int j) const {
    return state() + (pass * kPassRows * r_.units + j * kThreads) * static_cast<int>(sizeof(float));
  }
  __device__ __forceinline__ unsigned carried_of(int row) const {
    return state() + (row - first_row_) * r_.units * static_cast<int>(sizeof(float));
  }
  // The address of a k warp's sums for this thread's unit and its j-th row of a pass.
  __device__ __forceinline__ unsigned sums_at(int k_warp, int j) const {
    return sums() + (k_warp * kPassRows + j * r_.row_step) * r_.sum_row;
  }

  const Shape& shape_;
  const Recurrence& r_;
  const Block block_;
  Operand<kPassRows, kPlain> operand_;
  const unsigned H_;
  const unsigned in_block_, unit_;  // of the block and of the group
  const int first_row_;             // of this thread, in a pass and in the tile
  const unsigned state_, sums_;     // addresses for that row
};

}  // namespace fastlstm::cuda
