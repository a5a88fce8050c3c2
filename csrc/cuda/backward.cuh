// The backward pass: one cooperative launch runs the whole sequence from its end, with W_hh
// resident on chip. It writes digates, from which cuBLAS computes the gradients of weights and
// input.
//
// Compiled for sm_80, sm_90 and sm_100, and run under emulation on a CPU. It has not yet run on a
// GPU.
//
// It mirrors forward.cuh. A block's weights are the columns of W_hh of its hidden units, as rows of
// W_hh^T: a tile holds 16 units. The operand is the digates of the later step, with the four gates
// of a unit side by side, so that a thread writes them in one access. A sum is dh. The thread that
// reads it has fetched the activated gates, c and c' one pass ahead. dc is in shared memory, in
// float. A thread always has the same unit, so it adds up the gradients of its biases and peepholes
// in registers, in the order of steps. At the end those of the block's threads are added in the
// order of threads. There are no atomic sums, so every run gives the same bits.
//
// Step 0 has no product, and an extra step T computes dhx only. If another layer feeds this one,
// step 0 has a product too: the operand also has that layer's digates of the same step, and the
// weights have its W_ih. Their product is dy.
//
// Model of a step (plan.cpp): that of forward.cuh, with an operand four times as wide, as many
// products and twice the work on a row. In bfloat16 on an H100: 1.1 us for H = 128, 3.6 for H =
// 1024 and B = 16, 9.8 for H = 2048 and B = 16, of which copying the operand takes 6.4.
#pragma once

#include "cuda/thread_rows.cuh"

namespace fastlstm::cuda {

template <class Element, int kMTiles, int kNTiles>
class Backward : ThreadRows<Element, kNTiles> {
  using Base = ThreadRows<Element, kNTiles>;
  using Base::in, Base::out, Base::for_each_row, Base::for_each_row_of, Base::offset, Base::place,
      Base::state, Base::carried, Base::own_units, Base::weight_of, Base::shape_, Base::r_,
      Base::block_, Base::operand_, Base::H_, Base::unit_, Base::kPassRows;
  using typename Base::Stored;
  using Weights = Product<Element, kMTiles, kNTiles>;
  static constexpr int kWarpUnits = 16 * kMTiles;
  static constexpr int kGradients = 7;  // of a unit: of 4 biases and 3 peepholes
  static_assert(kGradients * kThreads * sizeof(float) <= kGradientBytes);

  // The numbers that a row's cell reads from memory.
  struct Fetched {
    Stored gates[4], c, c_prev, dy, dcells;
  };

 public:
  __device__ __forceinline__ explicit Backward(const BackwardArguments& arguments)
      : Base(arguments.call.shape, arguments.recurrence),
        call_(arguments.call),
        weights_(r_),
        peepholes_(this->load_peepholes(call_.weight_ch)) {}

  __device__ __forceinline__ void run() {
    load_weights();
    block_.prepare();
    operand_.clear();
    block_.set_backward_flags(0);
    __syncthreads();
    start();
    fetch(0, 0);
    for (int s = 0;; ++s) {
      const bool multiplies = s > 0 || block_.is_fed();
      if (multiplies) {
        block_.wait(s);
        operand_.begin_step(s);
      }
      block_.set_backward_flags(s + 1);
      for (int pass = 0; pass < r_.passes; ++pass) {
        if (multiplies) {
          operand_.begin_pass(pass);
          typename Weights::Sums sums;
          weights_.multiply(operand_, sums);
          store_sums(sums);
        }
        __syncthreads();
        finish(s, pass);
        if (pass + 1 < r_.passes) {
          publish(s, pass);
          fetch(s, pass + 1);
        }
      }
      if (s < block_.steps() || block_.feeds()) block_.arrive();
      if (s == block_.steps()) break;
      publish(s, r_.passes - 1);
      fetch(s + 1, 0);
    }
    end();
  }

 private:
  __device__ __forceinline__ void load_weights() {
    const int row_warp = threadIdx.x / 32 / r_.k_warps;
    const unsigned first_unit = block_.slice * r_.units + row_warp * kWarpUnits;
    weights_.load([&](int tile, unsigned row, int step, unsigned in_step) {
      const unsigned unit = first_unit + tile * 16 + row;
      unsigned of_unit = step * (Weights::kStepNumbers / 4) + in_step / 4;
      const auto* weight = weight_of(call_, of_unit);
      const unsigned at = (in_step % 4 * H_ + of_unit) * H_ + unit;
      return weight && unit < H_ ? weight[at] : typename Element::Bits{};
    });
  }

  // Sets dc to dcy; and, for rows of length 0, dhx to dhy.
  __device__ __forceinline__ void start() {
    for_each_row([&](int row) {
      carried(row) = call_.dcy ? to_sum(in(call_.dcy)[state(row)]) : 0;
      if (block_.length(row) == 0) {
        store(out(call_.dhx) + state(row), call_.dhy ? to_sum(in(call_.dhy)[state(row)]) : 0);
      }
    });
  }

  // Starts loading what the cells of a pass read.
  __device__ __forceinline__ void fetch(int s, int pass) {
    const int t = block_.time_from_end(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (!(flags & kReads)) return;
      Fetched& to = fetched_[j];
      const int64_t at = place(t, row);
      const Stored* reserve = in(call_.reserve) + at * 5 * shape_.H + unit_;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) to.gates[gate] = reserve[gate * shape_.H];
      to.c = reserve[4 * shape_.H];
      if (flags & kFirst) {
        to.c_prev = in(call_.cx)[state(row)];
      } else if (!(flags & kAfresh)) {
        const int64_t rows_before = (block_.reverse ? -1 : 1) * shape_.B * r_.between_rows;
        to.c_prev = reserve[(4 - 5 * rows_before) * shape_.H];
      }
      if (has_dy()) to.dy = in(call_.dy)[offset(call_.dy_stride, t, row)];
      if (call_.dcells) to.dcells = in(call_.dcells)[at * shape_.H + unit_];
    });
  }

  __device__ __forceinline__ void store_sums(const typename Weights::Sums& sums) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int unit = warp / r_.k_warps * kWarpUnits + lane / 4;
    const int row = warp % r_.k_warps * kPassRows + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum(row + n * 8 + j % 2, unit + m * 16 + j / 2 * 8) = sums[m][n][j];
        }
      }
    }
  }

  // Computes the gradient of the LSTM cell from the sums of a pass.
  __device__ __forceinline__ void finish(int s, int pass) {
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      // At a row's last step the group has not written its own part of the operand, which is zero.
      // The part of the layer that feeds it counts.
      const bool has_sum = flags & (kReads | kDue) && (!(flags & kLast) || block_.is_fed());
      float dh = 0, dc = flags & kCuts ? 0 : carried(row);
      if (has_sum) {
        for (int k_warp = 0; k_warp < r_.k_warps; ++k_warp) {
          dh += sum(k_warp * kPassRows + row % kPassRows, threadIdx.x % r_.units);
        }
      }
      Gates<float>& digates = digates_[j];
      digates = {0, 0, 0, 0};
      if (flags & kReads) {
        const Fetched& from = fetched_[j];
        if (has_dy()) dh += to_sum(from.dy);
        if (flags & kLast && call_.dhy) {
          dh += to_sum(in(call_.dhy)[state(row)]);
        }
        if (call_.dcells) dc += to_sum(from.dcells);
        const Gates<float> gates = {to_sum(from.gates[0]), to_sum(from.gates[1]),
                                    to_sum(from.gates[2]), to_sum(from.gates[3])};
        const float c = to_sum(from.c), c_prev = flags & kAfresh ? 0 : to_sum(from.c_prev);
        digates = call_.weight_ch.data ? fastlstm::cell_backward<GateMath<float>, true>(
                                             gates, c_prev, c, dh, peepholes_, dc, dpeepholes_)
                                       : fastlstm::cell_backward<GateMath<float>, false>(
                                             gates, c_prev, c, dh, peepholes_, dc, dpeepholes_);
        dbias_.i += digates.i, dbias_.f += digates.f;
        dbias_.g += digates.g, dbias_.o += digates.o;
        const auto operand = four<Stored>(Element::operand(digates.i), Element::operand(digates.f),
                                          Element::operand(digates.g), Element::operand(digates.o));
        const bool is_cut = block_.flags(s + 1, row) & kCuts;
        units(operand_.row(s + 1, row))[own_units() + unit_] =
            is_cut ? four<Stored>(0, 0, 0, 0) : operand;
        if (block_.feeds()) units(operand_.fed_row(s, row))[unit_] = operand;
      } else if (flags & kDue) {
        store(out(call_.dhx) + state(row), dh);
        // The layer that this one feeds computes dhx from its own part of the operand alone.
        if (block_.feeds()) units(operand_.fed_row(s, row))[unit_] = four<Stored>(0, 0, 0, 0);
      }
      carried(row) = dc;
    });
  }

  // Writes the results of a pass that no other block waits for.
  __device__ __forceinline__ void publish(int s, int pass) const {
    if (s == block_.steps()) return;
    const int t = block_.time_from_end(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned) {
      Stored* to = out(call_.digates) + offset(call_.digates_stride, t, row);
      store(to, digates_[j].i);
      store(to + shape_.H, digates_[j].f);
      store(to + 2 * shape_.H, digates_[j].g);
      store(to + 3 * shape_.H, digates_[j].o);
    });
  }

  // Writes dcx, and the sums over the steps.
  __device__ __forceinline__ void end() const {
    float* gradients = reinterpret_cast<float*>(dynamic_shared() + r_.sums);
    const float of_thread[kGradients] = {dbias_.i,      dbias_.f,      dbias_.g,     dbias_.o,
                                         dpeepholes_.i, dpeepholes_.f, dpeepholes_.o};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kGradients; ++i) gradients[i * kThreads + threadIdx.x] = of_thread[i];
    __syncthreads();
    for_each_row([&](int row) { store(out(call_.dcx) + state(row), carried(row)); });
    if (unit_ >= H_ || this->first_row_ > 0) return;
    for (int i = 0; i < kGradients; ++i) {
      float* of_call = static_cast<float*>(i < 4 ? call_.dbias : call_.dweight_ch);
      if (!of_call) continue;
      float total = 0;
      for (int thread = threadIdx.x; thread < kThreads; thread += r_.units) {
        total += gradients[i * kThreads + thread];
      }
      const int64_t set = block_.tile * shape_.G + block_.group;
      of_call[(i < 4 ? set * 4 + i : set * 3 + i - 4) * shape_.H + unit_] = total;
    }
  }

  // Whether dy is read. A layer that another one feeds gets it from that layer.
  __device__ __forceinline__ bool has_dy() const { return call_.dy && !block_.is_fed(); }
  __device__ __forceinline__ static Four<Stored>* units(unsigned char* row) {
    return reinterpret_cast<Four<Stored>*>(row);
  }
  // dh of a unit of the block; rows count through all k warps.
  __device__ __forceinline__ float& sum(int row, int unit) const {
    return reinterpret_cast<float*>(dynamic_shared() + r_.sums)[row * (r_.units + 4) + unit];
  }

  const RecurrenceBackward& call_;
  Weights weights_;
  const Peepholes<float> peepholes_;
  Fetched fetched_[kThreadRows];
  Gates<float> digates_[kThreadRows];
  Gates<float> dbias_ = {0, 0, 0, 0};
  Peepholes<float> dpeepholes_ = {0, 0, 0};
};

template <class Element, int kMTiles, int kNTiles>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardArguments arguments) {
  Backward<Element, kMTiles, kNTiles>(arguments).run();
}

// The kernel of variant `kernel`, for a type of products.
template <class Element>
BackwardKernel backward_variant(int kernel) {
  constexpr auto of = [](int k) { return variant(Direction::backward, k); };
  constexpr Variant a = of(0), b = of(1), c = of(2), d = of(3);
  constexpr BackwardKernel kernels[kVariants] = {
      backward_kernel<Element, a.m_tiles, a.n_tiles>,
      backward_kernel<Element, b.m_tiles, b.n_tiles>,
      backward_kernel<Element, c.m_tiles, c.n_tiles>,
      backward_kernel<Element, d.m_tiles, d.n_tiles>,
  };
  return kernels[kernel];
}

}  // namespace fastlstm::cuda
