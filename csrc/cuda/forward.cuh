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
// Model of a step (plan.cpp): 1.0 us for the barrier and the copy of the operand (operand.cuh), or
// neither with one slice; then products, 8 cycles each on one of 4 tensor cores, and 150 cycles for
// each row of a thread. In bfloat16 on an H100: 0.8 us for H = 128, 2.5 for H = 1024 and B = 16,
// 4.5 for H = 2048 and B = 16.
//
// Considered: each thread computes the cell from the sums in its own registers, without shared
// memory. That would save about 100 cycles with one k warp and none with several, leave the gates
// of B <= 8 at H = 2048 to 2 of 8 warps, and read igates and write y in pieces of 16 bytes.
#pragma once

#include "cuda/thread_rows.cuh"

namespace fastlstm::cuda {

template <class Element, int kMTiles, int kNTiles>
class Forward : ThreadRows<Element, kNTiles> {
  using Base = ThreadRows<Element, kNTiles>;
  using Base::in, Base::out, Base::for_each_row, Base::for_each_row_of, Base::offset, Base::place,
      Base::state, Base::carried, Base::own_units, Base::weight_of, Base::shape_, Base::r_,
      Base::block_, Base::operand_, Base::H_, Base::unit_, Base::kPassRows;
  using typename Base::Stored;
  using Weights = Product<Element, kMTiles, kNTiles>;
  static constexpr int kWarpUnits = 4 * kMTiles;

 public:
  __device__ __forceinline__ explicit Forward(const ForwardArguments& arguments)
      : Base(arguments.call.shape, arguments.recurrence),
        call_(arguments.call),
        weights_(r_),
        peepholes_(this->load_peepholes(call_.weight_ch)) {}

  __device__ __forceinline__ void run() {
    load_weights();
    block_.prepare();
    operand_.clear();
    block_.set_forward_flags(0);
    __syncthreads();
    start();
    block_.arrive();
    fetch(0, 0);
    for (int s = 0; s < block_.steps(); ++s) {
      block_.wait(s + 1);
      operand_.begin_step(s);
      block_.set_forward_flags(s + 1);
      for (int pass = 0; pass < r_.passes; ++pass) {
        operand_.begin_pass(pass);
        typename Weights::Sums sums;
        weights_.multiply(operand_, sums);
        store_sums(sums);
        __syncthreads();
        finish(s, pass);
        if (pass + 1 < r_.passes) {
          publish(s, pass);
          fetch(s, pass + 1);
        }
      }
      if (s + 1 < block_.steps() || block_.feeds()) block_.arrive();
      publish(s, r_.passes - 1);
      if (s + 1 < block_.steps()) fetch(s + 1, 0);
    }
  }

 private:
  __device__ __forceinline__ void load_weights() {
    const int row_warp = threadIdx.x / 32 / r_.k_warps;
    const unsigned first_unit = block_.slice * r_.units + row_warp * kWarpUnits;
    weights_.load([&](int tile, unsigned row, int step, unsigned in_step) {
      const unsigned unit = first_unit + tile / 2 * 8 + row % 8;
      unsigned k = step * Weights::kStepNumbers + in_step;
      const auto* weight = weight_of(call_, k);
      const unsigned at = ((tile % 2 * 2 + row / 8) * H_ + unit) * H_ + k;
      return weight && unit < H_ ? weight[at] : typename Element::Bits{};
    });
  }

  // Sets h and c to hx and cx; and, for rows of length 0, hy and cy too.
  __device__ __forceinline__ void start() {
    for_each_row([&](int row) {
      const Stored h = in(call_.hx)[state(row)], c = in(call_.cx)[state(row)];
      carried(row) = to_sum(c);
      write_own(0, row, to_sum(h));
      if (block_.length(row) == 0) {
        out(call_.hy)[state(row)] = h;
        out(call_.cy)[state(row)] = c;
      }
    });
  }

  // Starts loading the igates of a pass.
  __device__ __forceinline__ void fetch(int s, int pass) {
    const int t = block_.time_of(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (!(flags & kReads)) return;
      const Stored* igates =
          block_.is_fed() ? in(call_.bias.data) + (block_.group - 1) * call_.bias.stride + unit_
                          : in(call_.igates) + offset(call_.igates_stride, t, row);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) igates_[j][gate] = igates[gate * shape_.H];
    });
  }

  __device__ __forceinline__ void store_sums(const typename Weights::Sums& sums) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int unit = warp / r_.k_warps * kWarpUnits + lane / 4;
    const int row = warp % r_.k_warps * kPassRows + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < kMTiles; m += 2) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          sum(row + n * 8 + j, unit + m * 4) = make_float4(
              sums[m][n][j], sums[m][n][2 + j], sums[m + 1][n][j], sums[m + 1][n][2 + j]);
        }
      }
    }
  }

  // Computes the LSTM cell from the sums of a pass.
  __device__ __forceinline__ void finish(int s, int pass) {
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      if (!(flags & kReads)) {
        // Only in a reversed group does a row start later than at step 0.
        if (block_.reverse) write_own(s + 1, row, to_sum(in(call_.hx)[state(row)]));
        return;
      }
      Gates<float> gates = {0, 0, 0, 0};
      float c = flags & kCuts ? 0 : carried(row);
      for (int k_warp = 0; k_warp < r_.k_warps; ++k_warp) {
        const float4 part = sum(k_warp * kPassRows + row % kPassRows, threadIdx.x % r_.units);
        gates.i += part.x, gates.f += part.y, gates.g += part.z, gates.o += part.w;
      }
      gates.i += to_sum(igates_[j][0]);
      gates.f += to_sum(igates_[j][1]);
      gates.g += to_sum(igates_[j][2]);
      gates.o += to_sum(igates_[j][3]);
      h_[j] = call_.weight_ch.data
                  ? fastlstm::cell_forward<GateMath<float>, true>(gates, peepholes_, c)
                  : fastlstm::cell_forward<GateMath<float>, false>(gates, peepholes_, c);
      write_own(s + 1, row, h_[j]);
      if (block_.feeds()) {
        store(reinterpret_cast<Stored*>(operand_.fed_row(s, row)) + unit_, Element::operand(h_[j]));
      }
      carried(row) = c;
      gates_[j] = gates;
    });
  }

  // Writes the results of a pass that no other block waits for.
  __device__ __forceinline__ void publish(int s, int pass) const {
    const int t = block_.time_of(s);
    for_each_row_of(s, pass, [&](int j, int row, unsigned flags) {
      const int64_t at = place(t, row);
      const bool reads = flags & kReads;
      const float h = reads ? h_[j] : 0, c = reads ? carried(row) : 0;
      if (Stored* y = y_at(at)) store(y, h);
      if (call_.cells) store(out(call_.cells) + at * shape_.H + unit_, c);
      if (call_.reserve && reads) {
        Stored* reserve = out(call_.reserve) + at * 5 * shape_.H + unit_;
        store(reserve, gates_[j].i);
        store(reserve + shape_.H, gates_[j].f);
        store(reserve + 2 * shape_.H, gates_[j].g);
        store(reserve + 3 * shape_.H, gates_[j].o);
        store(reserve + 4 * shape_.H, c);
      }
      if (flags & kLast) {
        store(out(call_.hy) + state(row), h);
        store(out(call_.cy) + state(row), c);
      }
    });
  }

  // The address of y at a place, or null: y_below of layers that feed another one may be null.
  __device__ __forceinline__ Stored* y_at(int64_t at) const {
    if (block_.feeds()) return call_.y_below ? out(call_.y_below) + at * shape_.H + unit_ : nullptr;
    const int64_t before = r_.feeds ? block_.group * r_.between_groups : 0;
    return out(call_.y) + (at - before) * shape_.H + unit_;
  }
  // Writes h to the group's own operand for step s, or zero if a reset drops it.
  __device__ __forceinline__ void write_own(int s, int row, float h) const {
    store(reinterpret_cast<Stored*>(operand_.row(s, row)) + own_units() + unit_,
          Element::operand(block_.flags(s, row) & kCuts ? 0 : h));
  }
  // The gates of a unit of the block; rows count through all k warps.
  __device__ __forceinline__ float4& sum(int row, int unit) const {
    return reinterpret_cast<float4*>(dynamic_shared() + r_.sums)[row * (r_.units + 1) + unit];
  }

  const RecurrenceForward& call_;
  Weights weights_;
  const Peepholes<float> peepholes_;
  Stored igates_[kThreadRows][4];
  Gates<float> gates_[kThreadRows];
  float h_[kThreadRows];
};

template <class Element, int kMTiles, int kNTiles>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArguments arguments) {
  Forward<Element, kMTiles, kNTiles>(arguments).run();
}

// The kernel of variant `kernel`, for a type of products.
template <class Element>
ForwardKernel forward_variant(int kernel) {
  constexpr auto of = [](int k) { return variant(Direction::forward, k); };
  constexpr Variant a = of(0), b = of(1), c = of(2), d = of(3);
  constexpr ForwardKernel kernels[kVariants] = {
      forward_kernel<Element, a.m_tiles, a.n_tiles>,
      forward_kernel<Element, b.m_tiles, b.n_tiles>,
      forward_kernel<Element, c.m_tiles, c.n_tiles>,
      forward_kernel<Element, d.m_tiles, d.n_tiles>,
  };
  return kernels[kernel];
}

}  // namespace fastlstm::cuda
