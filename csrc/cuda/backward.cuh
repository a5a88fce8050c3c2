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
// Model of a step (plan.cpp): that of forward.cuh, with an operand four times as wide and as many
// products. In bfloat16 on an H100: 2.5 us for H = 128, 4.2 for H = 1024 and B = 16, 14.4 for H =
// 2048 and B = 16, of which copying the operand takes 6.4.
#pragma once

#include "cuda/options.cuh"
#include "cuda/thread_rows.cuh"

namespace fastlstm::cuda {

// `Call` is RecurrenceBackward, or RecurrenceBackwardWithOptions, which is not kPlain.
template <class Element, int kMTiles, int kNTiles, bool kPlain, class Call>
class Backward : ThreadRows<Element, kNTiles, Direction::backward, kPlain, kHasOptions<Call>> {
  static constexpr bool kOptions = kHasOptions<Call>;
  using Base = ThreadRows<Element, kNTiles, Direction::backward, kPlain, kOptions>;
  using Base::in, Base::out, Base::for_each_row, Base::for_each_row_of, Base::at, Base::state_of,
      Base::carried, Base::weight_of, Base::set_flags, Base::is_cut, Base::sums_at,
      Base::carried_of, Base::shape_, Base::r_, Base::block_, Base::operand_, Base::H_,
      Base::in_block_, Base::unit_, Base::kPassRows;
  using typename Base::Stored;
  using Weights = Product<Element, kMTiles, kNTiles, false, kPlain>;
  static constexpr int kWarpUnits = 16 * kMTiles;
  static_assert(!(kPlain && kOptions));
  static constexpr bool kLayers = !kPlain && !kOptions;  // groups may be layers
  static constexpr int kGradients = 7;                   // of a unit: of 4 biases and 3 peepholes
  static_assert(kGradients * kThreads * sizeof(float) <= kGradientBytes);

  // The numbers that a row's cell reads from memory.
  struct Fetched {
    Stored gates[4], c, c_prev, dy, dcells;
  };

 public:
  __device__ __forceinline__ explicit Backward(const PassArguments<Call>& arguments)
      : Base(arguments.call.shape, arguments.recurrence),
        call_(arguments.call),
        weights_(r_),
        peepholes_(kPlain ? this->load_peepholes(call_.weight_ch) : Peepholes<float>{}) {}

  __device__ __forceinline__ void run() {
    load_weights();
    block_.prepare();
    operand_.clear();
    set_flags(0);
    __syncthreads();
    start();
    fetch(0, 0);
    for (int s = 0;; ++s) {
      const bool multiplies = s > 0 || is_fed();
      if (multiplies) {
        block_.template wait<kPlain, kLayers>(s);
        operand_.begin_step(s);
      }
      set_flags(s + 1);
      for (int pass = 0; pass < r_.passes; ++pass) {
        if (multiplies) {
          typename Weights::Sums sums;
          weights_.multiply(operand_, pass, sums);
          if (pass > 0 && operand_.is_of_one_warp()) __syncthreads();  // the last pass's are read
          store_sums(sums);
        }
        __syncthreads();
        finish(s, pass);
        if (pass + 1 < r_.passes) {
          publish(s, pass);
          fetch(s, pass + 1);
        }
      }
      if (s < block_.steps() || feeds()) block_.template arrive<kPlain, kLayers>();
      if (s == block_.steps()) break;
      publish(s, r_.passes - 1);
      fetch(s + 1, 0);
    }
    end();
  }

 private:
  __device__ __forceinline__ bool is_fed() const { return kLayers && Base::is_fed(); }
  __device__ __forceinline__ bool feeds() const { return kLayers && Base::feeds(); }
  __device__ __forceinline__ unsigned own_units() const { return kLayers ? Base::own_units() : 0; }

  __device__ __forceinline__ void load_weights() {
    const int row_warp = threadIdx.x / 32 / r_.k_warps;
    const unsigned first_unit = block_.slice * r_.units + row_warp * kWarpUnits;
    weights_.load(r_.operand, this->rows_are_aligned(call_), [&](int step, int row, int i) {
      const unsigned unit = first_unit + i;
      unsigned of_unit = step * (Weights::kStepNumbers / 4) + row / 4;
      const auto* weight = weight_of(call_, of_unit);
      return weight && unit < H_ ? weight + ((row % 4 * H_ + of_unit) * H_ + unit) : nullptr;
    });
    __syncthreads();
  }

  // Sets dc to dcy; and, for rows of length 0, dhx to dhy.
  __device__ __forceinline__ void start() {
    for_each_row([&](int row) {
      store_shared(carried_of(row), call_.dcy ? to_sum(in(call_.dcy)[state_of(row)]) : 0);
      if (block_.length(row) == 0) {
        store(out(call_.dhx) + state_of(row), call_.dhy ? to_sum(in(call_.dhy)[state_of(row)]) : 0);
      }
    });
  }

  // Starts loading what the cells of a pass read.
  __device__ __forceinline__ void fetch(int s, int pass) {
    const int t = block_.time_from_end(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (flags & kReads) fetch_row(t, row, flags, fetched_[j]);
    });
  }
  __device__ __forceinline__ void fetch_row(int t, int row, unsigned flags, Fetched& to) const {
    const Stored* reserve = at(in(call_.reserve), 5 * H_, t, row);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) to.gates[gate] = reserve[gate * H_];
    to.c = reserve[4 * H_];
    if (flags & kFirst) {
      to.c_prev = in(call_.cx)[state_of(row)];
    } else if (!(flags & kAfresh)) {
      to.c_prev = at(in(call_.reserve), 5 * H_, t + (block_.reverse ? 1 : -1), row)[4 * H_];
    }
    if (has_dy()) to.dy = *at(in(call_.dy), call_.dy_stride, t, row);
    if (call_.dcells) to.dcells = *at(in(call_.dcells), H_, t, row);
  }

  __device__ __forceinline__ void store_sums(const typename Weights::Sums& sums) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int unit = (warp >> r_.k_shift) * kWarpUnits + lane / 4;
    const int row = (warp & (r_.k_warps - 1)) * kPassRows + lane % 4 * 2;
    const unsigned at = shared_memory() + r_.sums + row * r_.sum_row + unit * 4;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          store_shared(at + (n * 8 + j % 2) * r_.sum_row + (m * 16 + j / 2 * 8) * 4, sums[m][n][j]);
        }
      }
    }
  }

  // Computes the gradient of the LSTM cell from the sums of a pass.
  __device__ __forceinline__ void finish(int s, int pass) {
    const int t = block_.time_from_end(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      finish_row(s, pass, j, row, flags);
      if (!kPlain && s < block_.steps()) publish_row(t, j, row);
    });
  }
  __device__ __forceinline__ void finish_row(int s, int pass, int j, int row, unsigned flags) {
    // Three registers that the kernels of plain calls can spare.
    const Peepholes<float> peepholes = kPlain ? peepholes_ : this->load_peepholes(call_.weight_ch);
    // At a row's last step the group has not written its own part of the operand, which is zero.
    // The part of the layer that feeds it counts.
    const bool has_sum = flags & (kReads | kDue) && (!(flags & kLast) || is_fed());
    float dh = 0, dc = flags & kCuts ? 0 : load_shared<float>(carried(pass, j));
    if (has_sum) {
      constexpr int kAtOnce = kPlain ? kWarps : 1;  // see forward.cuh
#pragma unroll 1
      for (int first = 0; first == 0 || (!kPlain && first < r_.k_warps); first += kAtOnce) {
        float parts[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          parts[i] = first + i < r_.k_warps ? load_shared<float>(sums_at(first + i, j)) : 0;
        }
#pragma unroll
        for (const float part : parts) dh += part;
      }
    }
    if constexpr (kOptions) {
      if (call_.options.hidden_mask) dh *= to_sum(in(call_.options.hidden_mask)[state_of(row)]);
      // What zoneout of the later step, which this thread computed, has passed on.
      const bool has_kept = flags & (kReads | kDue) && !(flags & (kLast | kCuts));
      if (call_.options.keep_h && has_kept) dh += dh_kept()[state_of(row)];
    }
    Gates<float>& digates = digates_[j];
    digates = {0, 0, 0, 0};
    if (flags & kReads) {
      const Fetched& from = fetched_[j];
      if (has_dy()) dh += to_sum(from.dy);
      if (flags & kLast && call_.dhy) {
        dh += to_sum(in(call_.dhy)[state_of(row)]);
      }
      if (call_.dcells) dc += to_sum(from.dcells);
      const Gates<float> gates = {to_sum(from.gates[0]), to_sum(from.gates[1]),
                                  to_sum(from.gates[2]), to_sum(from.gates[3])};
      const float c = to_sum(from.c), c_prev = flags & kAfresh ? 0 : to_sum(from.c_prev);
      if constexpr (kOptions) {
        digates = finish_row_with_options(s, row, gates, c_prev, dh, peepholes, dc);
      } else {
        digates = call_.weight_ch.data ? fastlstm::cell_backward<GateMath<float>, true>(
                                             gates, c_prev, c, dh, peepholes, dc, dpeepholes_)
                                       : fastlstm::cell_backward<GateMath<float>, false>(
                                             gates, c_prev, c, dh, peepholes, dc, dpeepholes_);
      }
      dbias_.i += digates.i, dbias_.f += digates.f;
      dbias_.g += digates.g, dbias_.o += digates.o;
      const auto operand = four<Stored>(Element::operand(digates.i), Element::operand(digates.f),
                                        Element::operand(digates.g), Element::operand(digates.o));
      const auto carried_on = is_cut(s + 1, row) ? four<Stored>(0, 0, 0, 0) : operand;
      if (operand_.is_local()) {
        units(operand_.local_row(s + 1, row))[unit_] = carried_on;
      } else {
        units(operand_.row(s + 1, row))[own_units() + unit_] = carried_on;
      }
      if (feeds()) units(operand_.fed_row(s, row))[unit_] = operand;
    } else if (flags & kDue) {
      store(out(call_.dhx) + state_of(row), dh);
      // The layer that this one feeds computes dhx from its own part of the operand alone.
      if (feeds()) units(operand_.fed_row(s, row))[unit_] = four<Stored>(0, 0, 0, 0);
    }
    store_shared(carried(pass, j), dc);
  }

  // The gradient of the cell of a row with options; turns `dc` from the gradient of c into that of
  // c'.
  __device__ __forceinline__ Gates<float> finish_row_with_options(int s, int row,
                                                                  const Gates<float>& gates,
                                                                  float c_prev, float dh,
                                                                  const Peepholes<float>& peepholes,
                                                                  float& dc) {
    const CellOptions& options = call_.options;
    const int t = block_.time_from_end(s);
    float keep_c = 0;
    if (options.keep_c) keep_c = to_sum(*at(in(options.keep_c), options.keep_c_stride, t, row));
    if (options.keep_h) {
      const float keep_h = to_sum(*at(in(options.keep_h), options.keep_h_stride, t, row));
      dh_kept()[state_of(row)] = keep_h * dh;
      dh *= 1 - keep_h;
    }
    const float dc_kept = keep_c * dc;
    dc *= 1 - keep_c;
    const Gates<float> digates =
        call_.weight_ch.data
            ? clipped_cell_backward<true>(gates, c_prev, dh, peepholes, dc, dpeepholes_, options)
            : clipped_cell_backward<false>(gates, c_prev, dh, peepholes, dc, dpeepholes_, options);
    dc += dc_kept;
    return digates;
  }
  __device__ __forceinline__ float* dh_kept() const { return static_cast<float*>(call_.dh_kept); }

  // Writes the results of a pass that no other block waits for; see forward.cuh.
  __device__ __forceinline__ void publish(int s, int pass) const {
    if (!kPlain || s == block_.steps()) return;
    const int t = block_.time_from_end(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned) { publish_row(t, j, row); });
  }
  __device__ __forceinline__ void publish_row(int t, int j, int row) const {
    Stored* to = at(out(call_.digates), call_.digates_stride, t, row);
    store(to, digates_[j].i);
    store(to + H_, digates_[j].f);
    store(to + 2 * H_, digates_[j].g);
    store(to + 3 * H_, digates_[j].o);
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
    for_each_row([&](int row) {
      store(out(call_.dcx) + state_of(row), load_shared<float>(carried_of(row)));
    });
    if (unit_ >= H_ || this->first_row_ > 0) return;
    int64_t tile = block_.tile;
    if constexpr (kOptions) {  // computed anew: these kernels have no register to keep it in
      tile = opaque(static_cast<int>(blockIdx.x)) / r_.slices % r_.tiles;
    }
#pragma unroll 1
    for (int i = 0; i < kGradients; ++i) {
      float* of_call = static_cast<float*>(i < 4 ? call_.dbias : call_.dweight_ch);
      if (!of_call) continue;
      float total = 0;
#pragma unroll 1
      for (int thread = threadIdx.x; thread < kThreads; thread += r_.units) {
        total += gradients[i * kThreads + thread];
      }
      const int64_t set = tile * shape_.G + block_.group;
      of_call[(i < 4 ? set * 4 + i : set * 3 + i - 4) * shape_.H + unit_] = total;
    }
  }

  // Whether dy is read. A layer that another one feeds gets it from that layer.
  __device__ __forceinline__ bool has_dy() const { return call_.dy && !is_fed(); }
  __device__ __forceinline__ static Four<Stored>* units(unsigned char* row) {
    return reinterpret_cast<Four<Stored>*>(row);
  }

  const Call& call_;
  Weights weights_;
  const Peepholes<float> peepholes_;
  Fetched fetched_[Base::kRows];
  Gates<float> digates_[Base::kRows];
  Gates<float> dbias_ = {0, 0, 0, 0};
  Peepholes<float> dpeepholes_ = {0, 0, 0};
};

template <class Element, int kMTiles, int kNTiles, bool kPlain, class Call>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ PassArguments<Call> arguments) {
  Backward<Element, kMTiles, kNTiles, kPlain, Call>(arguments).run();
}

// The kernel of variant `kernel`, for a type of products.
template <class Element, bool kPlain, class Call>
PassKernel<Call> backward_variant(int kernel) {
  constexpr auto of = [](int k) { return variant(Direction::backward, k); };
  constexpr Variant a = of(0), b = of(1), c = of(2), d = of(3);
  constexpr PassKernel<Call> kernels[kVariants] = {
      backward_kernel<Element, a.m_tiles, a.n_tiles, kPlain, Call>,
      backward_kernel<Element, b.m_tiles, b.n_tiles, kPlain, Call>,
      backward_kernel<Element, c.m_tiles, c.n_tiles, kPlain, Call>,
      backward_kernel<Element, d.m_tiles, d.n_tiles, kPlain, Call>,
  };
  return kernels[kernel];
}
template <class Element>
BackwardKernel backward_variant(int kernel, bool is_plain) {
  return is_plain ? backward_variant<Element, true, RecurrenceBackward>(kernel)
                  : backward_variant<Element, false, RecurrenceBackward>(kernel);
}

}  // namespace fastlstm::cuda
