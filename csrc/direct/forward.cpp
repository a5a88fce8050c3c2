#include "../buffer_pool.h"
#include "../cpu/kernels.h"
#include "../cpu/thread_choice.h"
#include "../stream_type.h"
#include "observers.h"
#include "passes.h"

namespace py = pybind11;

namespace fastlstm::direct {

namespace {

constexpr double kFlopsPerMicrosecond =
    2e4;  // few, as of a call that reads its weights from memory

// Whether a call gets fewer threads after one that waited for a thread: one step of a few rows,
// whose results do not depend on the number of threads, if it is not too short for a second one.
bool is_watched_for_stalls(const Call& call) {
  return call.T == 1 && call.B <= 6 && call.flops() >= 2e5 && !call.layout.has_norms;
}

// hidden_mask * hx of a layer, rounded to their type.
const void* masked_hx(const Call& call, const LstmForward& one, const cpu::Kernels& kernels,
                      Scratch& scratch) {
  if (!call.layout.has_states) return one.hx;  // zeros
  const int64_t count = call.states();
  void* const to = scratch.take(count * call.item());
  const void *const mask = one.options->hidden_mask, *const hx = one.hx;
  const auto multiply = [count](const auto* a, const auto* b, auto* product) {
    for (int64_t i = 0; i < count; ++i) product[i] = a[i] * b[i];
  };
  if (call.type == torch::Type::float64) {
    multiply(static_cast<const double*>(mask), static_cast<const double*>(hx),
             static_cast<double*>(to));
  } else if (call.type == torch::Type::float32) {
    multiply(static_cast<const float*>(mask), static_cast<const float*>(hx),
             static_cast<float*>(to));
  } else {
    const auto widened = [&](const void* from) {
      auto* const wide = static_cast<uint32_t*>(scratch.take(count * sizeof(float)));
      for (int64_t i = 0; i < count; ++i) wide[i] = static_cast<const uint16_t*>(from)[i] << 16;
      return reinterpret_cast<float*>(wide);
    };
    float* const product = widened(hx);
    multiply(widened(mask), product, product);
    kernels.to_bfloat16(product, to, count, 1);
  }
  return to;
}

}  // namespace

py::object pooled(const Call& call, const std::vector<int64_t>& sizes) {
  if (is_pooled(call.type, sizes)) return owned(pooled_empty(call.type, sizes));
  const int count = static_cast<int>(sizes.size());
  std::vector<int64_t> strides(count);
  int64_t size = 1;
  for (int i = count - 1; i >= 0; --i) {
    strides[i] = size;
    size *= sizes[i];
  }
  return owned(torch::allocate(call.type, call.is_default, sizes.data(), strides.data(), count));
}

Results forward(const Call& call, bool train, Scratch& scratch,
                const std::vector<PrepackedWeights*>& prepacked) {
  const int num_layers = call.layout.num_layers;
  const int64_t width = call.G() * call.H, y_bytes = call.rows() * width * call.item();
  Results results;
  results.hy = owned(call.new_states()), results.cy = owned(call.new_states());
  char *const hy_data = data_of(results.hy), *const cy_data = data_of(results.cy);
  std::vector<LstmForward> calls(num_layers);
  std::vector<py::object> reserves;
  for (int layer = 0; layer < num_layers; ++layer) {
    LstmForward& one = calls[layer];
    const bool is_last = layer + 1 == num_layers;
    const int64_t strides[] = {call.B * width, width, 0};
    call.fill(one, layer, layer ? static_cast<char*>(calls[layer - 1].y) : call.x,
              layer ? strides : call.x_stride);
    if (call.layout.is_cell) {
      results.y = results.hy;
    } else if (is_last || train) {
      results.y = owned(call.new_output());
      one.y = data_of(results.y);
    } else {
      one.y = scratch.take(y_bytes);
    }
    one.hy = hy_data + layer * call.states() * call.item();
    one.cy = cy_data + layer * call.states() * call.item();
    if (!train) continue;
    results.kept.push_back(results.y);
    reserves.push_back(pooled(call, {call.T, call.B, call.G(), call.reserve_width()}));
    one.reserve = data_of(reserves.back());
  }
  const auto& kernels = cpu::kernels("auto");
  const int threads = num_threads();
  const auto run = [&](int used) {
    for (size_t layer = 0; layer < calls.size(); ++layer) {
      LstmForward& one = calls[layer];
      Scratch of_layer;
      if (call.layout.has_norms) {
        LayerNormForward with_norms{one, call.norms(of_layer)};
        with_norms.workspace = of_layer.take(kernels.layer_norm_forward_workspace(one.shape, used));
        kernels.layer_norm_forward(with_norms, used);
        continue;
      }
      LstmCellOptions options;
      if (one.options && one.options->hidden_mask) {
        options = *one.options;
        options.masked_hx = masked_hx(call, one, kernels, of_layer);
        one.options = &options;
      }
      PrepackedWeights::Memory packed;
      if (!prepacked.empty() && !kernels.forward_streams(one.shape)) {
        packed = prepacked[layer]->of(one, kernels, used);
        one.prepacked = packed->data(), one.is_prepacked = true;
      }
      one.workspace = of_layer.take(kernels.forward_workspace(one.shape, used));
      kernels.forward(one, used);
    }
  };
  run_kernels(call, [&] {
    if (!is_watched_for_stalls(call)) return run(threads);
    static thread_local cpu::ThreadChoice choice;
    choice.set_most(threads);
    const int used = choice.next();
    choice.watch(call.flops() / kFlopsPerMicrosecond, [&] { run(used); });
  });
  results.kept.insert(results.kept.end(), reserves.begin(), reserves.end());
  return results;
}

namespace {

template <class Number>
Number* at(Number* data, int64_t offset) {
  return data ? data + offset : nullptr;
}

const float* of_group(const LstmWeight& weight, int64_t group) {
  return at(static_cast<const float*>(weight.data), group * weight.stride);
}

}  // namespace

bool forward_by_streams(const Call& call, const std::vector<PyObject*>& streams, Scratch& scratch,
                        Results& results) {
  const int64_t D = call.G(), B = call.B, H = call.H, T = call.T, groups = call.layout.groups();
  if (call.type != torch::Type::float32 || call.layout.is_cell || call.lengths || call.reset ||
      static_cast<int64_t>(streams.size()) != groups) {
    return false;
  }
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t I = call.input_size(static_cast<int>(i / D));
    if (!is_stream_of(streams[i], B, I, H)) return false;
  }
  results.hy = owned(call.new_states()), results.cy = owned(call.new_states());
  results.y = owned(call.new_output());
  float* const y = reinterpret_cast<float*>(data_of(results.y));
  float* const hy = reinterpret_cast<float*>(data_of(results.hy));
  float* const cy = reinterpret_cast<float*>(data_of(results.cy));
  const float *const hx = reinterpret_cast<const float*>(call.hx),
                     *const cx = reinterpret_cast<const float*>(call.cx);
  bool is_current = true;
  int code = FASTLSTM_OK;
  run_kernels(call, [&] {
    for (int64_t i = 0; i < groups && is_current; ++i) {
      const LayerWeights& of = call.layers[i / D];
      const fastlstm_layer layer = {of_group(of.weight_ih, i % D), of_group(of.weight_hh, i % D),
                                    of_group(of.bias_ih, i % D),   of_group(of.bias_hh, i % D),
                                    of_group(of.weight_ch, i % D), nullptr};
      is_current = has_weights(streams[i], layer);
    }
    if (!is_current) return;
    const float* x = reinterpret_cast<const float*>(call.x);
    int64_t stride[] = {call.x_stride[0], call.x_stride[1]};
    float* to = nullptr;
    for (int64_t i = 0; i < groups && !code; ++i) {
      const bool is_last = i / D + 1 == call.layout.num_layers;
      if (i % D == 0) {
        to = is_last ? y : static_cast<float*>(scratch.take(T * B * D * H * sizeof(float)));
      }
      const int64_t first = i % D ? T - 1 : 0, sign = i % D ? -1 : 1;
      code = run_sequence(streams[i], {T,
                                       B,
                                       x + first * stride[0],
                                       {sign * stride[0], stride[1], 1},
                                       to + first * B * D * H + i % D * H,
                                       {sign * B * D * H, D * H},
                                       hx + i * B * H,
                                       cx + i * B * H,
                                       hy + i * B * H,
                                       cy + i * B * H});
      if (i % D == D - 1) x = to, stride[0] = B * D * H, stride[1] = D * H;
    }
  });
  if (code != FASTLSTM_OK && code != FASTLSTM_BUSY) throw std::runtime_error(fastlstm_last_error());
  return is_current && code == FASTLSTM_OK;
}

}  // namespace fastlstm::direct
