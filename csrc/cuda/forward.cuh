// The forward pass: one cooperative launch runs the whole sequence, with W_hh resident on chip.
//
// Compiled for sm_80, sm_90 and sm_100, and run under emulation on a CPU. It has not yet run on a
// GPU.
//
// A block computes `units` hidden units of one group, for one tile of the batch. At each step its
// warps multiply h' by their weights (product.cuh, operand.cuh). Two tiles of 16 rows of weights
// hold the gates i, f and g, o of 8 units, so a lane's sums of two tiles are the four gates of one
// unit for two rows of the batch. Sums are exchanged through shared memory. There the parts of the
// k warps are added in a fixed order, and each thread reads the sums of its own unit, so that
// neighbours in a warp access neighbours in global memory. A thread always has the same unit, so
// its peepholes stay in registers. c is in shared memory, in float, and is never rounded. Before a
// block arrives at the barrier it writes h only. While it waits it writes the other results and
// reads the igates of the next step.
//
// The weights of a layer are [W_ih | W_hh], and its h is also written to the operand of the layer
// above. All layers run at the same time, with neither a launch nor a separate product between
// them.
//
// Model of a step (plan.cpp): 1.6 us for the barrier and the trip of the operand (operand.cuh), or
// neither with one slice; then products, 8 cycles each on one of 4 tensor cores, 450 cycles for
// each chunk of the operand, and 370 for each row of a thread. In bfloat16 on an H100: 2.3 us for H
// = 128, 3.0 for H = 1024 and B = 16, 5.2 for H = 2048 and B = 16.
//
// Considered: each thread computes the cell from the sums in its own registers, without shared
// memory. That would save about 100 cycles with one k warp and none with several, leave the gates
// of B <= 8 at H = 2048 to 2 of 8 warps, and read igates and write y in pieces of 16 bytes.
#pragma once

#include "cuda/options.cuh"
#include "cuda/thread_rows.cuh"

namespace fastlstm::cuda {

// `Call` is RecurrenceForward, or RecurrenceForwardWithOptions, which is not kPlain.
template <class Element, int kMTiles, int kNTiles, bool kPlain, class Call>
class Forward : ThreadRows<Element, kNTiles, Direction::forward, kPlain, kHasOptions<Call>> {
  static constexpr bool kOptions = kHasOptions<Call>;
  using Base = ThreadRows<Element, kNTiles, Direction::forward, kPlain, kOptions>;
  using Base::in, Base::out, Base::for_each_row, Base::for_each_row_of, Base::at, Base::state_of,
      Base::carried, Base::weight_of, Base::set_flags, Base::is_cut, Base::sums_at,
      Base::carried_of, Base::shape_, Base::r_, Base::block_, Base::operand_, Base::H_,
      Base::in_block_, Base::unit_, Base::kPassRows;
  using typename Base::Stored;
  using Weights = Product<Element, kMTiles, kNTiles, true, kPlain>;
  static constexpr int kWarpUnits = 4 * kMTiles;
  // Rows of a thread whose igates are fetched a pass ahead, and those that are fetched after the
  // products, when the registers of their sums are free: more of the former would spill.
  static constexpr int kAhead = kPlain ? 2 : 2 - kNTiles;
  static constexpr int kLate = Base::kRows - kAhead;
  static_assert(!(kPlain && kOptions));
  static constexpr bool kLayers = !kPlain && !kOptions;  // groups may be layers

 public:
  __device__ __forceinline__ explicit Forward(const PassArguments<Call>& arguments)
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
    block_.template arrive<kPlain, kLayers>();
    fetch(0, 0);
    for (int s = 0; s < block_.steps(); ++s) {
      block_.template wait<kPlain, kLayers>(s + 1);
      operand_.begin_step(s);
      set_flags(s + 1);
      for (int pass = 0; pass < r_.passes; ++pass) {
        typename Weights::Sums sums;
        weights_.multiply(operand_, pass, sums);
        if (pass > 0 && operand_.is_of_one_warp()) __syncthreads();  // the last pass's are read
        store_sums(sums);
        fetch_late(s, pass);
        __syncthreads();
        finish(s, pass);
        if (pass + 1 < r_.passes) {
          publish(s, pass);
          fetch(s, pass + 1);
        }
      }
      if (s + 1 < block_.steps() || feeds()) block_.template arrive<kPlain, kLayers>();
      publish(s, r_.passes - 1);
      if (s + 1 < block_.steps()) fetch(s + 1, 0);
    }
  }

 private:
  __device__ __forceinline__ bool is_fed() const { return kLayers && Base::is_fed(); }
  __device__ __forceinline__ bool feeds() const { return kLayers && Base::feeds(); }
  __device__ __forceinline__ unsigned own_units() const { return kLayers ? Base::own_units() : 0; }

  __device__ __forceinline__ void load_weights() {
    const int row_warp = threadIdx.x / 32 / r_.k_warps;
    const unsigned first_unit = block_.slice * r_.units + row_warp * kWarpUnits;
    weights_.load(r_.operand, this->rows_are_aligned(call_), [&](int step, int row, int i) {
      const unsigned unit = first_unit + row / 32 * 8 + row % 8;
      unsigned k = step * Weights::kStepNumbers + i;
      const auto* weight = weight_of(call_, k);
      return weight && unit < H_ ? weight + ((row % 32 / 8 * H_ + unit) * H_ + k) : nullptr;
    });
    __syncthreads();
  }

  // Sets h and c to hx and cx; and, for rows of length 0, hy and cy too.
  __device__ __forceinline__ void start() {
    for_each_row([&](int row) {
      const Stored h = in(call_.hx)[state_of(row)], c = in(call_.cx)[state_of(row)];
      store_shared(carried_of(row), to_sum(c));
      write_own(0, row, to_sum(h));
      if (block_.length(row) == 0) {
        out(call_.hy)[state_of(row)] = h;
        out(call_.cy)[state_of(row)] = c;
      }
    });
  }

  // Starts loading the igates of a pass.
  __device__ __forceinline__ void fetch(int s, int pass) {
    const int t = block_.time_of(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (j < kAhead && flags & kReads) fetch_row(t, row, igates_[j]);
    });
  }
  __device__ __forceinline__ void fetch_late(int s, int pass) {
    if constexpr (kLate == 0) return;
    const int t = block_.time_of(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (j >= kAhead && flags & kReads) fetch_row(t, row, igates_[j]);
    });
  }
  __device__ __forceinline__ void fetch_row(int t, int row, Stored (&to)[4]) const {
    const Stored* igates =
        is_fed() ? in(call_.bias.data) + (block_.group - 1) * call_.bias.stride + unit_
                 : at(in(call_.igates), call_.igates_stride, t, row);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) to[gate] = igates[gate * H_];
  }

  __device__ __forceinline__ void store_sums(const typename Weights::Sums& sums) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int unit = (warp >> r_.k_shift) * kWarpUnits + lane / 4;
    const int row = (warp & (r_.k_warps - 1)) * kPassRows + lane % 4 * 2;
    const unsigned at = shared_memory() + r_.sums + row * r_.sum_row + unit * 16;
#pragma unroll
    for (int m = 0; m < kMTiles; m += 2) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          store_shared(at + (n * 8 + j) * r_.sum_row + m * 4 * 16,
                       make_float4(sums[m][n][j], sums[m][n][2 + j], sums[m + 1][n][j],
                                   sums[m + 1][n][2 + j]));
        }
      }
    }
  }

  // Computes the LSTM cell from the sums of a pass.
  __device__ __forceinline__ void finish(int s, int pass) {
    const int t = block_.time_of(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      finish_row(s, pass, j, row, flags);
      if (!kPlain) publish_row(t, pass, j, row, flags);
    });
  }
  __device__ __forceinline__ void finish_row(int s, int pass, int j, int row, unsigned flags) {
    // Three registers that the kernels of plain calls can spare.
    const Peepholes<float> peepholes = kPlain ? peepholes_ : this->load_peepholes(call_.weight_ch);
    if (!(flags & kReads)) {
      // Only in a reversed group does a row start later than at step 0.
      if (!kPlain && block_.reverse) write_own(s + 1, row, to_sum(in(call_.hx)[state_of(row)]));
      return;
    }
    Gates<float> gates = {0, 0, 0, 0};
    float c = flags & kCuts ? 0 : load_shared<float>(carried(pass, j));
    // Plain calls read all parts at once, which takes 32 registers.
    constexpr int kAtOnce = kPlain ? kWarps : 1;
#pragma unroll 1
    for (int first = 0; first == 0 || (!kPlain && first < r_.k_warps); first += kAtOnce) {
      float4 parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        parts[i] = first + i < r_.k_warps ? load_shared<float4>(sums_at(first + i, j))
                                          : make_float4(0, 0, 0, 0);
      }
#pragma unroll
      for (const float4& part : parts) {
        gates.i += part.x, gates.f += part.y, gates.g += part.z, gates.o += part.w;
      }
    }
    const auto& igates = igates_[j];
    gates.i += to_sum(igates[0]);
    gates.f += to_sum(igates[1]);
    gates.g += to_sum(igates[2]);
    gates.o += to_sum(igates[3]);
    if constexpr (kOptions) {
      h_[j] = finish_row_with_options(s, carried(pass, j), row, flags, gates, peepholes, c);
    } else {
      h_[j] = call_.weight_ch.data
                  ? fastlstm::cell_forward<GateMath<float>, true>(gates, peepholes, c)
                  : fastlstm::cell_forward<GateMath<float>, false>(gates, peepholes, c);
    }
    write_own(s + 1, row, h_[j]);
    if (feeds()) {
      store(reinterpret_cast<Stored*>(operand_.fed_row(s, row)) + unit_, Element::operand(h_[j]));
    }
    store_shared(carried(pass, j), c);
    gates_[j] = gates;
  }

  // The cell of a row with options; returns h, and turns `c` from c' into c. What zoneout reads is
  // loaded after the cell: before it, it would spill. h' is the y of the step before, which this
  // thread has written.
  __device__ __forceinline__ float finish_row_with_options(int s, unsigned c_address, int row,
                                                           unsigned flags, Gates<float>& gates,
                                                           const Peepholes<float>& peepholes,
                                                           float& c) const {
    const CellOptions& options = call_.options;
    const int t = block_.time_of(s);
    float h = call_.weight_ch.data ? clipped_cell_forward<true>(gates, peepholes, c, options)
                                   : clipped_cell_forward<false>(gates, peepholes, c, options);
    if (options.keep_c) {
      const float c_prev = flags & kCuts ? 0 : load_shared<float>(c_address);
      c = mix(c_prev, c, to_sum(*at(in(options.keep_c), options.keep_c_stride, t, row)));
    }
    if (options.keep_h) {
      const bool is_first = t == (block_.reverse ? block_.length(row) - 1 : 0);
      const Stored* before = is_first ? in(call_.hx) + state_of(row)
                                      : at(in(call_.y), H_, t + (block_.reverse ? 1 : -1), row);
      const float h_prev = flags & kCuts ? 0 : to_sum(*before);
      h = mix(h_prev, h, to_sum(*at(in(options.keep_h), options.keep_h_stride, t, row)));
    }
    return h;
  }

  // Writes the results of a pass that no other block waits for. Plain calls do so while they wait
  // for others; the rest would need 20 registers more to keep them until then.
  __device__ __forceinline__ void publish(int s, int pass) const {
    if constexpr (!kPlain) return;
    const int t = block_.time_of(s);
    for_each_row_of(s, pass,
                    [&](int j, int row, unsigned flags) { publish_row(t, pass, j, row, flags); });
  }
  __device__ __forceinline__ void publish_row(int t, int pass, int j, int row,
                                              unsigned flags) const {
    const bool reads = flags & kReads;
    const float h = reads ? h_[j] : 0, c = reads ? load_shared<float>(carried(pass, j)) : 0;
    if (Stored* y = y_of_layer()) store(at(y, H_, t, row), h);
    if (call_.cells) store(at(out(call_.cells), H_, t, row), c);
    if (call_.reserve && reads) {
      Stored* reserve = at(out(call_.reserve), 5 * H_, t, row);
      store(reserve, gates_[j].i);
      store(reserve + H_, gates_[j].f);
      store(reserve + 2 * H_, gates_[j].g);
      store(reserve + 3 * H_, gates_[j].o);
      store(reserve + 4 * H_, c);
    }
    if (flags & kLast) {
      store(out(call_.hy) + state_of(row), h);
      store(out(call_.cy) + state_of(row), c);
    }
  }

  // Where y of the layer would begin if it had a place for each group, or null: y_below of layers
  // that feed another one may be null.
  __device__ __forceinline__ Stored* y_of_layer() const {
    if (feeds()) return out(call_.y_below);
    const int64_t before = kLayers && r_.feeds ? block_.group * r_.between_groups : 0;
    return out(call_.y) - before * shape_.H;
  }
  // Writes h, masked if there is a mask, to the group's own operand for step s, or zero if a reset
  // drops it.
  __device__ __forceinline__ void write_own(int s, int row, float h) const {
    if constexpr (kOptions) {
      const Stored* mask = in(call_.options.hidden_mask);
      if (mask) h = masked<Stored>(h, mask[state_of(row)]);
    }
    const float operand = Element::operand(is_cut(s, row) ? 0 : h);
    const unsigned unit = own_units() + unit_;
    if (operand_.is_local()) {
      store(reinterpret_cast<Stored*>(operand_.local_row(s, row)) + unit, operand);
    } else {
      store(reinterpret_cast<Stored*>(operand_.row(s, row)) + unit, operand);
    }
  }

  const Call& call_;
  Weights weights_;
  const Peepholes<float> peepholes_;
  Stored igates_[Base::kRows][4];
  Gates<float> gates_[Base::kRows];
  float h_[Base::kRows];
};

template <class Element, int kMTiles, int kNTiles, bool kPlain, class Call>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ PassArguments<Call> arguments) {
  Forward<Element, kMTiles, kNTiles, kPlain, Call>(arguments).run();
}

// The kernel of variant `kernel`, for a type of products.
template <class Element, bool kPlain, class Call>
PassKernel<Call> forward_variant(int kernel) {
  constexpr auto of = [](int k) { return variant(Direction::forward, k); };
  constexpr Variant a = of(0), b = of(1), c = of(2), d = of(3);
  constexpr PassKernel<Call> kernels[kVariants] = {
      forward_kernel<Element, a.m_tiles, a.n_tiles, kPlain, Call>,
      forward_kernel<Element, b.m_tiles, b.n_tiles, kPlain, Call>,
      forward_kernel<Element, c.m_tiles, c.n_tiles, kPlain, Call>,
      forward_kernel<Element, d.m_tiles, d.n_tiles, kPlain, Call>,
  };
  return kernels[kernel];
}
template <class Element>
ForwardKernel forward_variant(int kernel, bool is_plain) {
  return is_plain ? forward_variant<Element, true, RecurrenceForward>(kernel)
                  : forward_variant<Element, false, RecurrenceForward>(kernel);
}

}  // namespace fastlstm::cuda
