// One step of an LSTM with layer norm: the cell, after the matrix product z = W_hh (hidden_mask *
// h').
//
// A block has one row of the batch in one group, since the norms of z and of c~, the c before
// zoneout, need the mean and the variance of a row. A thread has the same units in each phase, so
// that only sums are exchanged. Numbers that are read again come from L1; those that are computed
// in one phase and read in the next are in shared memory, two for each unit.
//
// Compiled for sm_80, sm_90 and sm_100, and run under emulation on a CPU. They have not yet run on
// a GPU.
#include "cuda/cell.cuh"
#include "cuda/normalized.h"

namespace fastlstm::cuda {
namespace {

// A step is short, and waits for memory: with more threads each has fewer units to wait for.
constexpr int kMostThreads = 512;
constexpr double kEpsilon = 1e-5;  // as torch.nn.LayerNorm

__device__ __forceinline__ float root(float x) { return ::sqrtf(x); }
__device__ __forceinline__ double root(double x) { return ::sqrt(x); }

// The sums over the threads of a block, for all of them; `scratch` has kSums numbers a warp.
template <int kSums, class Number>
__device__ __forceinline__ void sum_of_block(Number (&sums)[kSums], Number* scratch) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], bits);
  }
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  __syncthreads();  // the sums before these have been read
  if (threadIdx.x % 32 == 0) {
    for (int i = 0; i < kSums; ++i) scratch[warp * kSums + i] = sums[i];
  }
  __syncthreads();
  for (int i = 0; i < kSums; ++i) {
    sums[i] = 0;
    for (int from = 0; from < warps; ++from) sums[i] += scratch[from * kSums + i];
  }
}

template <class Number>
struct Moments {
  Number mean, scale;  // scale is 1 / sqrt(variance + epsilon)

  __device__ __forceinline__ Number normalise(Number x) const { return (x - mean) * scale; }
};

// Of the n numbers load(0), load(1), ..., of which a thread loads every blockDim.x-th.
template <class Number, class Load>
__device__ __forceinline__ Moments<Number> moments(int n, Number* scratch, const Load& load) {
  Number sum[1] = {0};
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum[0] += load(i);
  sum_of_block(sum, scratch);
  const Number mean = sum[0] / n;
  Number squares[1] = {0};
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const Number difference = load(i) - mean;
    squares[0] += difference * difference;
  }
  sum_of_block(squares, scratch);
  return {mean, 1 / root(squares[0] / n + static_cast<Number>(kEpsilon))};
}

template <class Stored>
__device__ __forceinline__ Gates<Sum<Stored>> load_gates(const Stored* from, int H) {
  return {to_sum(from[0]), to_sum(from[H]), to_sum(from[2 * H]), to_sum(from[3 * H])};
}
template <class Number>
__device__ __forceinline__ void add_to_gates(Number* to, int H, const Gates<Number>& added) {
  to[0] += added.i, to[H] += added.f, to[2 * H] += added.g, to[3 * H] += added.o;
}
template <class Number>
__device__ __forceinline__ Gates<Number> product(const Gates<Number>& a, const Gates<Number>& b) {
  return {a.i * b.i, a.f * b.f, a.g * b.g, a.o * b.o};
}
template <class Number>
__device__ __forceinline__ Number sum_of(const Gates<Number>& gates) {
  return (gates.i + gates.f) + (gates.g + gates.o);
}

// z of one unit, normalised; zero if no state comes from the step before.
template <class Stored, class Number>
__device__ __forceinline__ Gates<Number> normal_gates(const Stored* z, int H,
                                                      const Moments<Number>& norm) {
  if (!z) return {};
  const Gates<Number> gates = load_gates(z, H);
  return {norm.normalise(gates.i), norm.normalise(gates.f), norm.normalise(gates.g),
          norm.normalise(gates.o)};
}

// What a block knows of its row, as both kernels need it.
template <class Call>
struct RowOfBlock {
  int group, row;
  int64_t t, state, at;  // the step; the row of (G, B); the row of (T, B, G)
  RowSteps steps;

  __device__ __forceinline__ explicit RowOfBlock(const Arguments<Call>& arguments)
      : RowOfBlock(arguments.call, arguments.reverse, blockIdx.x / arguments.call.shape.B) {}
  __device__ __forceinline__ RowOfBlock(const Call& call, const ReverseBits& reverse, int group)
      : group(group),
        row(blockIdx.x % call.shape.B),
        t(reverse[group] ? call.shape.T - 1 - call.step : call.step),
        state(group * call.shape.B + row),
        at((t * call.shape.B + row) * call.shape.G + group),
        steps(steps_of_row(call.shape, reverse[group], row)) {}
};

template <class Stored>
__global__ void __launch_bounds__(kMostThreads) normalized_cell_forward_kernel(
    const __grid_constant__ Arguments<NormalizedCellForward> arguments) {
  using Number = Sum<Stored>;
  using Math = GateMath<Number>;
  const NormalizedCellForward& call = arguments.call;
  const CellOptions& options = call.options;
  const Shape& shape = call.shape;
  const RowOfBlock<NormalizedCellForward> here(arguments);
  const int H = static_cast<int>(shape.H), group = here.group, row = here.row;
  const int64_t t = here.t;
  Stored* const y = static_cast<Stored*>(call.y) + here.at * H;
  Stored* const cells = call.cells ? static_cast<Stored*>(call.cells) + here.at * H : nullptr;
  if (!here.steps.has_step(t)) {
    for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
      store(y + unit, Number{0});
      if (cells) store(cells + unit, Number{0});
    }
    return;
  }
  auto* const cell = reinterpret_cast<Number*>(dynamic_shared());  // (H) c~
  Number *const output = cell + H, *const scratch = output + H;    // (H) o
  const bool crosses = !here.steps.is_reset(t);
  const Stored* z =
      crosses ? static_cast<const Stored*>(call.hgates) + here.state * 4 * H : nullptr;
  Moments<Number> norm = {};
  if (crosses) norm = moments(4 * H, scratch, [&](int i) { return to_sum(z[i]); });
  const Stored* const igates = static_cast<const Stored*>(call.igates) + t * call.igates_stride[0] +
                               row * call.igates_stride[1] + group * call.igates_stride[2];
  const Stored* const gains = static_cast<const Stored*>(call.norm_hh) + int64_t{group} * 4 * H;
  Number* const c_of_row = static_cast<Number*>(call.c) + here.state * H;
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    Gates<Number> gates = load_gates(igates + unit, H);
    if (crosses) {
      const Gates<Number> normal = normal_gates(z + unit, H, norm);
      const Gates<Number> added = product(load_gates(gains + unit, H), normal);
      gates.i += added.i, gates.f += added.f, gates.g += added.g, gates.o += added.o;
    }
    const Number c_prev = crosses ? c_of_row[unit] : 0;
    const auto weight = load_peepholes<Stored>(shape, call.weight_ch, group, unit);
    Number c = call.weight_ch.data ? next_cell<Math, true>(gates, weight, c_prev)
                                   : next_cell<Math, false>(gates, weight, c_prev);
    c = clip(c, options);
    if (call.weight_ch.data) gates.o += weight.o * c;
    gates.o = Math::sigmoid(gates.o);
    cell[unit] = c;
    output[unit] = gates.o;
    c = mix(c_prev, c, share<Stored>(options.keep_c, options.keep_c_stride, t, row, group, unit));
    c_of_row[unit] = c;
    if (cells) store(cells + unit, c);
    if (call.reserve) {
      Stored* reserve = static_cast<Stored*>(call.reserve) + here.at * 9 * H + unit;
      store(reserve, gates.i);
      store(reserve + H, gates.f);
      store(reserve + 2 * H, gates.g);
      store(reserve + 3 * H, gates.o);
      store(reserve + 4 * H, c);
      for (int gate = 0; gate < 4; ++gate) {
        store(reserve + (5 + gate) * H, crosses ? to_sum(z[gate * H + unit]) : 0);
      }
    }
  }

  const Stored* const norm_c = static_cast<const Stored*>(call.norm_c) + int64_t{group} * 2 * H;
  if (call.norm_c) norm = moments(H, scratch, [&](int unit) { return cell[unit]; });
  Stored* const h_of_row = static_cast<Stored*>(call.h) + here.state * H;
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    Number c = cell[unit];
    if (call.norm_c) c = to_sum(norm_c[unit]) * norm.normalise(c) + to_sum(norm_c[H + unit]);
    Number h = output[unit] * Math::tanh(c);
    const Number h_prev = crosses ? to_sum(h_of_row[unit]) : 0;
    h = mix(h_prev, h, share<Stored>(options.keep_h, options.keep_h_stride, t, row, group, unit));
    if (options.hidden_mask) {
      const Stored factor = static_cast<const Stored*>(options.hidden_mask)[here.state * H + unit];
      store(static_cast<Stored*>(call.masked_h) + here.state * H + unit, masked<Stored>(h, factor));
    }
    store(h_of_row + unit, h);
    store(y + unit, h);
  }
}

// The gradients of the gates are read again as they are stored.
template <class Stored>
__global__ void __launch_bounds__(kMostThreads) normalized_cell_backward_kernel(
    const __grid_constant__ Arguments<NormalizedCellBackward> arguments) {
  using Number = Sum<Stored>;
  using Math = GateMath<Number>;
  const NormalizedCellBackward& call = arguments.call;
  const CellOptions& options = call.options;
  const Shape& shape = call.shape;
  const RowOfBlock<NormalizedCellBackward> here(arguments);
  const int H = static_cast<int>(shape.H), group = here.group, row = here.row;
  const int64_t t = here.t, sums_of_row = int64_t{row} * shape.G + group;
  Stored* const digates = static_cast<Stored*>(call.digates) + t * call.digates_stride[0] +
                          row * call.digates_stride[1] + group * call.digates_stride[2];
  Stored* const dz = static_cast<Stored*>(call.dz) + here.at * 4 * H;
  Stored* const dhgates = static_cast<Stored*>(call.dhgates) + here.state * 4 * H;
  if (!here.steps.has_step(t)) {
    for (int i = threadIdx.x; i < 4 * H; i += blockDim.x) {
      store(digates + i, Number{0});
      store(dz + i, Number{0});
      store(dhgates + i, Number{0});
    }
    return;
  }
  auto* const d_o = reinterpret_cast<Number*>(dynamic_shared());  // (H) c~, then the gradient of o
  Number *const dcell = d_o + H, *const scratch = dcell + H;      // (H) the gradient of normal c~
  const bool crosses = !here.steps.is_reset(t);
  const Stored* const reserve = static_cast<const Stored*>(call.reserve) + here.at * 9 * H;
  const Stored* c_before = nullptr;
  if (crosses && t == here.steps.first()) {
    c_before = static_cast<const Stored*>(call.cx) + here.state * H;
  } else if (crosses) {
    c_before = reserve + ((here.steps.before(t) - t) * shape.B * shape.G * 9 + 4) * H;
  }
  const auto sum_of_cell = [&](const Gates<Number>& gates, int unit) {
    return gates.f * (crosses ? to_sum(c_before[unit]) : 0) + gates.i * gates.g;
  };

  // The gradients of h and of the norm of c~.
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    d_o[unit] = clip(sum_of_cell(load_gates(reserve + unit, H), unit), options);
  }
  Moments<Number> norm = {};
  if (call.norm_c) norm = moments(H, scratch, [&](int unit) { return d_o[unit]; });
  const Stored* const norm_c = static_cast<const Stored*>(call.norm_c) + int64_t{group} * 2 * H;
  Number* const dnorm_c = static_cast<Number*>(call.dnorm_c) + sums_of_row * 2 * H;
  Number means[2] = {0, 0};
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    Number* dh_of_row = static_cast<Number*>(call.dh) + here.state * H + unit;
    Number dh = *dh_of_row;
    if (call.dy) {
      dh += to_sum(
          static_cast<const Stored*>(call.dy)[t * call.dy_stride[0] + row * call.dy_stride[1] +
                                              group * call.dy_stride[2] + unit]);
    }
    const Number keep = share<Stored>(options.keep_h, options.keep_h_stride, t, row, group, unit);
    *dh_of_row = crosses ? keep * dh : 0;
    dh *= 1 - keep;
    const Number o = to_sum(reserve[3 * H + unit]), normal = norm.normalise(d_o[unit]);
    const Number gain = call.norm_c ? to_sum(norm_c[unit]) : 1;
    const Number tanh_c =
        Math::tanh(call.norm_c ? gain * normal + to_sum(norm_c[H + unit]) : d_o[unit]);
    Number d = dh * o * (1 - tanh_c * tanh_c);
    d_o[unit] = dh * tanh_c * o * (1 - o);
    if (call.norm_c) {
      dnorm_c[unit] += d * normal;
      dnorm_c[H + unit] += d;
      d *= gain;
      means[0] += d;
      means[1] += d * normal;
    }
    dcell[unit] = d;
  }
  if (call.norm_c) sum_of_block(means, scratch);

  // The gradients of c~ and of the gates.
  const Stored* const z = reserve + 5 * H;
  const auto norm_z = moments(4 * H, scratch, [&](int i) { return to_sum(z[i]); });
  const Stored* const gains = static_cast<const Stored*>(call.norm_hh) + int64_t{group} * 4 * H;
  Number* const dnorm_hh = static_cast<Number*>(call.dnorm_hh) + sums_of_row * 4 * H;
  Number means_z[2] = {0, 0};
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    const Gates<Number> gates = load_gates(reserve + unit, H);
    const Number c_prev = crosses ? to_sum(c_before[unit]) : 0, sum = sum_of_cell(gates, unit);
    Number* dc_of_row = static_cast<Number*>(call.dc) + here.state * H + unit;
    Number dc = *dc_of_row;
    if (call.dcells) dc += to_sum(static_cast<const Stored*>(call.dcells)[here.at * H + unit]);
    const Number keep = share<Stored>(options.keep_c, options.keep_c_stride, t, row, group, unit);
    const Number dc_kept = keep * dc, c = clip(sum, options);
    dc *= 1 - keep;
    dc += call.norm_c ? norm.scale * (dcell[unit] - means[0] / H - norm.normalise(c) * means[1] / H)
                      : dcell[unit];
    Gates<Number> d;
    d.o = d_o[unit];
    Peepholes<Number> dweight = {};
    const auto weight = load_peepholes<Stored>(shape, call.weight_ch, group, unit);
    if (call.weight_ch.data) dc += weight.o * d.o;
    const Number limit = static_cast<Number>(options.cell_clip);
    if (limit > 0 && !(sum <= limit && sum >= -limit)) dc = 0;
    if (call.weight_ch.data) {
      next_cell_backward<Math, true>(gates, c_prev, weight, dc, d, dweight);
    } else {
      next_cell_backward<Math, false>(gates, c_prev, weight, dc, d, dweight);
    }
    *dc_of_row = crosses ? dc + dc_kept : 0;
    store(digates + unit, d.i);
    store(digates + H + unit, d.f);
    store(digates + 2 * H + unit, d.g);
    store(digates + 3 * H + unit, d.o);
    if (call.dweight_ch) {
      Number* to = static_cast<Number*>(call.dweight_ch) + sums_of_row * 3 * H + unit;
      to[0] += dweight.i, to[H] += dweight.f, to[2 * H] += d.o * c;
    }
    if (!crosses) continue;  // z is zero and no parameter's
    const Gates<Number> normal = normal_gates(z + unit, H, norm_z);
    add_to_gates(dnorm_hh + unit, H, product(d, normal));
    d = product(d, load_gates(gains + unit, H));
    means_z[0] += sum_of(d);
    means_z[1] += sum_of(product(d, normal));
  }
  sum_of_block(means_z, scratch);

  // dz, through the norm of z.
  for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
    for (int i = unit; i < 4 * H; i += H) {
      const Number d = to_sum(digates[i]) * to_sum(gains[i]);
      const Number along = norm_z.normalise(to_sum(z[i])) * means_z[1];
      const Number value = crosses ? norm_z.scale * (d - (means_z[0] + along) / (4 * H)) : 0;
      store(dz + i, value);
      store(dhgates + i, value);
    }
  }
}

template <class Call>
void launch_rows(const Call& call, const Kernel<Call> (&kernels)[4], Stream stream) {
  const Shape& shape = call.shape;
  const int threads =
      shape.H < kMostThreads ? static_cast<int>((shape.H + 31) / 32 * 32) : kMostThreads;
  const size_t size = shape.dtype == DType::float64 ? 8 : 4;
  launch_for_dtype<Call>(call, kernels, shape.G * shape.B, threads,
                         (2 * shape.H + 2 * threads / 32) * size, stream);
}

}  // namespace

void normalized_cell_forward(const NormalizedCellForward& call, Stream stream) {
  launch_rows<NormalizedCellForward>(
      call,
      {normalized_cell_forward_kernel<float>, normalized_cell_forward_kernel<double>,
       normalized_cell_forward_kernel<__nv_bfloat16>, normalized_cell_forward_kernel<__half>},
      stream);
}

void normalized_cell_backward(const NormalizedCellBackward& call, Stream stream) {
  launch_rows<NormalizedCellBackward>(
      call,
      {normalized_cell_backward_kernel<float>, normalized_cell_backward_kernel<double>,
       normalized_cell_backward_kernel<__nv_bfloat16>, normalized_cell_backward_kernel<__half>},
      stream);
}

}  // namespace fastlstm::cuda
