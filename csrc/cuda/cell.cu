// One step of the LSTM if W_hh does not fit on chip: the cell, between two matrix products.
//
// Both kernels are memory-bound. They read and write each number once, with coalesced accesses.
// Forward with reserve has 16 numbers and two floats for a hidden unit: at 3.35 TB/s on an H100
// about 3 us for H = 4096, B = 64 in bfloat16; backward takes as long (model).
//
// Compiled for sm_80, sm_90 and sm_100, and run under emulation on a CPU. They have not yet run on
// a GPU.
#include <type_traits>

#include "cuda/cell.cuh"

namespace fastlstm::cuda {
namespace {

// A block of the backward pass has 16 hidden units, of which a warp reads 32 bytes a row or more,
// and 32 rows at a time.
constexpr int kUnits = 16;
constexpr int kBackwardThreads = 512;

// A thread has one unit of one row; blocks count units of a row first. `Call` is CellForward, or
// CellForwardWithOptions.
template <class Stored, class Call>
__global__ void __launch_bounds__(kThreads)
    cell_forward_kernel(const __grid_constant__ Arguments<Call> arguments) {
  using Number = Sum<Stored>;
  constexpr bool kOptions = std::is_same_v<Call, CellForwardWithOptions>;
  const Call& call = arguments.call;
  const Shape& shape = call.shape;
  const int H = static_cast<int>(shape.H), B = static_cast<int>(shape.B);
  const int parts = (H + kThreads - 1) / kThreads, state = blockIdx.x / parts;
  const int group = state / B, row = state % B;
  const int unit = blockIdx.x % parts * kThreads + threadIdx.x;
  if (unit >= H) return;
  const bool reverse = arguments.reverse[group];
  const int64_t t = reverse ? shape.T - 1 - call.step : call.step;
  const int64_t at = (t * B + row) * shape.G + group;
  Stored* y = static_cast<Stored*>(call.y) + at * H + unit;
  Stored* cells = static_cast<Stored*>(call.cells) + at * H + unit;
  const RowSteps row_steps = steps_of_row(shape, reverse, row);
  if (!row_steps.has_step(t)) {
    store(y, Number{0});
    if (call.cells) store(cells, Number{0});
    return;
  }
  const Stored* igates = static_cast<const Stored*>(call.igates) + t * call.igates_stride[0] +
                         row * call.igates_stride[1] + group * call.igates_stride[2] + unit;
  Number* c_of_row = static_cast<Number*>(call.c) + int64_t{state} * H + unit;
  Gates<Number> gates = {to_sum(igates[0]), to_sum(igates[H]), to_sum(igates[2 * H]),
                         to_sum(igates[3 * H])};
  Number c = 0;
  if (!row_steps.is_reset(t)) {
    const Stored* hgates = static_cast<const Stored*>(call.hgates) + int64_t{state} * 4 * H + unit;
    c = *c_of_row;
    gates.i += to_sum(hgates[0]);
    gates.f += to_sum(hgates[H]);
    gates.g += to_sum(hgates[2 * H]);
    gates.o += to_sum(hgates[3 * H]);
  }
  const Peepholes<Number> weight = load_peepholes<Stored>(shape, call.weight_ch, group, unit);
  Number h;
  if constexpr (kOptions) {
    const CellOptions& options = call.options;
    const int64_t at_state = int64_t{state} * H + unit;
    const Number c_prev = c;
    const Number h_prev =
        row_steps.is_reset(t) ? 0 : to_sum(static_cast<const Stored*>(call.h)[at_state]);
    h = call.weight_ch.data ? clipped_cell_forward<true>(gates, weight, c, options)
                            : clipped_cell_forward<false>(gates, weight, c, options);
    const Number keep_h = share<Stored>(options.keep_h, options.keep_h_stride, t, row, group, unit);
    const Number keep_c = share<Stored>(options.keep_c, options.keep_c_stride, t, row, group, unit);
    h = mix(h_prev, h, keep_h);
    c = mix(c_prev, c, keep_c);
    if (options.hidden_mask) {
      const Stored factor = static_cast<const Stored*>(options.hidden_mask)[at_state];
      store(static_cast<Stored*>(call.masked_h) + at_state, masked<Stored>(h, factor));
    }
  } else {
    h = call.weight_ch.data ? fastlstm::cell_forward<GateMath<Number>, true>(gates, weight, c)
                            : fastlstm::cell_forward<GateMath<Number>, false>(gates, weight, c);
  }
  *c_of_row = c;
  store(static_cast<Stored*>(call.h) + int64_t{state} * H + unit, h);
  store(y, h);
  if (call.cells) store(cells, c);
  if (call.reserve) {
    Stored* reserve = static_cast<Stored*>(call.reserve) + at * 5 * H + unit;
    store(reserve, gates.i);
    store(reserve + H, gates.f);
    store(reserve + 2 * H, gates.g);
    store(reserve + 3 * H, gates.o);
    store(reserve + 4 * H, c);
  }
}

// A block has kUnits units of a group, for all rows, so that sums over rows need no atomics: a
// thread adds up every 32nd row, and those of a unit are added in order. `Call` is CellBackward, or
// CellBackwardWithOptions; that kernel is not held to the 64 registers of two blocks on a
// multiprocessor of sm_80, with which it would spill.
template <class Stored, class Call>
__global__ void __launch_bounds__(kBackwardThreads, std::is_same_v<Call, CellBackward> ? 0 : 1)
    cell_backward_kernel(const __grid_constant__ Arguments<Call> arguments) {
  using Number = Sum<Stored>;
  constexpr bool kOptions = std::is_same_v<Call, CellBackwardWithOptions>;
  const Call& call = arguments.call;
  const Shape& shape = call.shape;
  const int H = static_cast<int>(shape.H), parts = (H + kUnits - 1) / kUnits;
  const int group = blockIdx.x / parts;
  const int unit = blockIdx.x % parts * kUnits + threadIdx.x % kUnits;
  const bool reverse = arguments.reverse[group];
  const int64_t t = reverse ? shape.T - 1 - call.step : call.step;
  const Peepholes<Number> weight =
      unit < H ? load_peepholes<Stored>(shape, call.weight_ch, group, unit) : Peepholes<Number>{};
  Gates<Number> dbias = {};
  Peepholes<Number> dpeepholes = {};
  for (int row = threadIdx.x / kUnits; unit < H && row < shape.B;
       row += kBackwardThreads / kUnits) {
    const int64_t state = group * shape.B + row, at = (t * shape.B + row) * shape.G + group;
    Stored* digates = static_cast<Stored*>(call.digates) + t * call.digates_stride[0] +
                      row * call.digates_stride[1] + group * call.digates_stride[2] + unit;
    Stored* dhgates = static_cast<Stored*>(call.dhgates) + state * 4 * H + unit;
    const RowSteps row_steps = steps_of_row(shape, reverse, row);
    Gates<Number> d = {};
    bool crosses = false;  // the gradient, to the step before
    if (row_steps.has_step(t)) {
      Number* dh_of_row = static_cast<Number*>(call.dh) + state * H + unit;
      Number* dc_of_row = static_cast<Number*>(call.dc) + state * H + unit;
      const Stored* reserve = static_cast<const Stored*>(call.reserve) + at * 5 * H + unit;
      crosses = !row_steps.is_reset(t);
      Number c_prev = 0, dh = *dh_of_row, dc = *dc_of_row;
      if (crosses && t == row_steps.first()) {
        c_prev = to_sum(static_cast<const Stored*>(call.cx)[state * H + unit]);
      } else if (crosses) {
        c_prev = to_sum(reserve[((row_steps.before(t) - t) * shape.B * shape.G * 5 + 4) * H]);
      }
      if (call.dy) {
        dh += to_sum(
            static_cast<const Stored*>(call.dy)[t * call.dy_stride[0] + row * call.dy_stride[1] +
                                                group * call.dy_stride[2] + unit]);
      }
      if (call.dcells) dc += to_sum(static_cast<const Stored*>(call.dcells)[at * H + unit]);
      const Gates<Number> gates = {to_sum(reserve[0]), to_sum(reserve[H]), to_sum(reserve[2 * H]),
                                   to_sum(reserve[3 * H])};
      if constexpr (kOptions) {
        const CellOptions& options = call.options;
        const Number keep_h =
            share<Stored>(options.keep_h, options.keep_h_stride, t, row, group, unit);
        const Number keep_c =
            share<Stored>(options.keep_c, options.keep_c_stride, t, row, group, unit);
        const Number dh_kept = keep_h * dh, dc_kept = keep_c * dc;
        dh *= 1 - keep_h;
        dc *= 1 - keep_c;
        d = call.weight_ch.data
                ? clipped_cell_backward<true>(gates, c_prev, dh, weight, dc, dpeepholes, options)
                : clipped_cell_backward<false>(gates, c_prev, dh, weight, dc, dpeepholes, options);
        *dh_of_row = crosses ? dh_kept : 0;
        *dc_of_row = crosses ? dc + dc_kept : 0;
      } else {
        const Number c = to_sum(reserve[4 * H]);
        d = call.weight_ch.data ? fastlstm::cell_backward<GateMath<Number>, true>(
                                      gates, c_prev, c, dh, weight, dc, dpeepholes)
                                : fastlstm::cell_backward<GateMath<Number>, false>(
                                      gates, c_prev, c, dh, weight, dc, dpeepholes);
        *dh_of_row = 0;
        *dc_of_row = crosses ? dc : 0;
      }
      dbias.i += d.i, dbias.f += d.f, dbias.g += d.g, dbias.o += d.o;
    }
    const Number of_gate[4] = {d.i, d.f, d.g, d.o};
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      store(digates + gate * H, of_gate[gate]);
      store(dhgates + gate * H, crosses ? of_gate[gate] : 0);
    }
  }

  constexpr int kGradients = 7;
  const Number of_thread[kGradients] = {dbias.i,      dbias.f,      dbias.g,     dbias.o,
                                        dpeepholes.i, dpeepholes.f, dpeepholes.o};
  auto* shared = reinterpret_cast<Number*>(dynamic_shared());
#pragma unroll
  for (int i = 0; i < kGradients; ++i) shared[i * kBackwardThreads + threadIdx.x] = of_thread[i];
  __syncthreads();
  if (threadIdx.x >= kUnits || unit >= H) return;
  for (int i = 0; i < kGradients; ++i) {
    auto* of_call = static_cast<Number*>(i < 4 ? call.dbias : call.dweight_ch);
    if (!of_call) continue;
    Number total = 0;
    for (int thread = threadIdx.x; thread < kBackwardThreads; thread += kUnits) {
      total += shared[i * kBackwardThreads + thread];
    }
    of_call[(i < 4 ? group * 4 + i : group * 3 + i - 4) * shape.H + unit] += total;
  }
}

template <class Call>
void launch_forward(const Call& call, Stream stream) {
  const Shape& shape = call.shape;
  launch_for_dtype<Call>(
      call,
      {cell_forward_kernel<float, Call>, cell_forward_kernel<double, Call>,
       cell_forward_kernel<__nv_bfloat16, Call>, cell_forward_kernel<__half, Call>},
      shape.G * shape.B * ((shape.H + kThreads - 1) / kThreads), kThreads, 0, stream);
}

template <class Call>
void launch_backward(const Call& call, Stream stream) {
  const Shape& shape = call.shape;
  launch_for_dtype<Call>(
      call,
      {cell_backward_kernel<float, Call>, cell_backward_kernel<double, Call>,
       cell_backward_kernel<__nv_bfloat16, Call>, cell_backward_kernel<__half, Call>},
      shape.G * ((shape.H + kUnits - 1) / kUnits), kBackwardThreads,
      7 * kBackwardThreads * (shape.dtype == DType::float64 ? 8u : 4u), stream);
}

}  // namespace

void cell_forward(const CellForward& call, Stream stream) { launch_forward(call, stream); }

void cell_backward(const CellBackward& call, Stream stream) { launch_backward(call, stream); }

void cell_forward_with_options(const CellForwardWithOptions& call, Stream stream) {
  launch_forward(call, stream);
}

void cell_backward_with_options(const CellBackwardWithOptions& call, Stream stream) {
  launch_backward(call, stream);
}

}  // namespace fastlstm::cuda
