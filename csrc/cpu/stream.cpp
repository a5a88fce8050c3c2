// Steps of a stepping object. The sequence is cut into blocks of up to max_steps steps, and the
// layers take turns: a layer first multiplies the inputs of all steps of the block with W_ih, so
// that W_ih is read once, and then runs the steps, which read W_hh only.
#include <cstring>

#include "kernels.h"
#include "schedule.h"
#include "stream_products.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxRows = 6;
constexpr int kMaxQuantizedRows = 3;  // each takes 8 registers
#else
constexpr int kMaxRows = 3;  // 12 sums in 16 registers
constexpr int kMaxQuantizedRows = 1;
#endif
static_assert(kUnits <= kPadding);

// The steps of one thread.
template <WeightType kType>
class Steps {
 public:
  Steps(const StreamPlan& plan, const StreamCall& call, Team team)
      : plan_(plan), call_(call), team_(team), slot_(plan.slot) {
    const int64_t rows = plan.max_steps * plan.B;
    Workspace scratch(plan.scratch + team.thread() * plan.scratch_bytes);
    numbers_ = scratch.take<const float*>(rows);
    input_ = scratch.take<float>(rows * padded(plan.I));
    projected_ = scratch.take<float>(plan.B * kPanel);
    quantized_ = scratch.take<QuantizedRow>(rows);
    bytes_ = scratch.take<uint8_t>(0);
  }

  // Returns the slot of the last state.
  int64_t run() {
    for (int64_t t = 0; t < call_.T; t += plan_.max_steps) {
      const int64_t steps = lesser(plan_.max_steps, call_.T - t);
      for (int64_t l = 0; l < plan_.L; ++l) run_layer(l, t, steps);
      slot_ = 1 - slot_;
    }
    return slot_;
  }

 private:
  // h before step t of a block lies in slot_in(t). The state before and after the block is in
  // slots 0 and 1 in turn, that between its steps in slots from 2 on.
  int64_t slot_in(int64_t t) const { return t ? 1 + t : slot_; }
  int64_t slot_out(int64_t t, int64_t steps) const { return t + 1 == steps ? 1 - slot_ : 2 + t; }
  float* h(const StreamLayer& layer, int64_t slot) const {
    return layer.h + slot * plan_.B * padded(plan_.P);
  }

  void run_layer(int64_t l, int64_t first, int64_t steps) {
    const StreamLayer& layer = plan_.layers[l];
    const int64_t B = plan_.B, P = plan_.P, rows = steps * B;
    const Range panels = share(ceil_div(plan_.H, kUnits), team_.thread(), team_.size());
    const bool is_last = l + 1 == plan_.L;
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t b = 0; b < B; ++b) {
        numbers_[t * B + b] = l ? h(plan_.layers[l - 1], slot_out(t, steps)) + b * padded(P)
                                : input(first + t, b, t * B + b);
      }
    }
    row_stride_ = rows * kPanel;
    product(layer.weight_ih, panels, all(rows, layer.weight_ih.depth),
            {sums(panels.begin, 0), row_stride_, layer.bias + panels.begin * kPanel});

    for (int64_t t = 0; t < steps; ++t) {
      float* y = is_last ? call_.y + (first + t) * call_.y_stride[0] : nullptr;
      float* before = h(layer, slot_in(t));
      float* after = h(layer, slot_out(t, steps));
      for (int64_t b = 0; b < B; ++b) numbers_[b] = before + b * padded(P);
      // Other threads wrote most of h: its lines come from their caches all at once.
      for (int64_t i = 0; i < B * padded(P); i += 16) __builtin_prefetch(before + i);
      product(layer.weight_hh, panels, all(B, P), {sums(panels.begin, t * B), row_stride_, nullptr},
              t % 2);
      if (layer.has_peepholes) {
        update<true>(layer, panels, t, after, y);
      } else {
        update<false>(layer, panels, t, after, y);
      }
      if (plan_.has_projection) project(layer, after, y);
      // After the last step too: the barrier at the end of OpenMP's region spins for milliseconds
      // while another program has the other thread's core. This one sleeps, which frees a core.
      team_.barrier();
    }
  }

  // The gate sums of a row of the block: those of a panel are row_stride_ after the panel before.
  float* sums(int64_t panel, int64_t row) const {
    return plan_.gate_sums + panel * row_stride_ + row * kPanel;
  }

  // Row b of the input at time t: where it is if it needs no padding, else a copy.
  const float* input(int64_t t, int64_t b, int64_t row) {
    const float* from = call_.x + t * call_.x_stride[0] + b * call_.x_stride[1];
    if (call_.x_stride[2] == 1 && plan_.I == padded(plan_.I)) return from;
    float* to = input_ + row * padded(plan_.I);
    if (call_.x_stride[2] == 1) {
      std::memcpy(to, from, plan_.I * sizeof(float));
    } else {
      for (int64_t i = 0; i < plan_.I; ++i) to[i] = from[i * call_.x_stride[2]];
    }
    for (int64_t i = plan_.I; i < padded(plan_.I); ++i) to[i] = 0;
    return to;
  }

  // The first `count` rows of numbers_, quantized if the product takes them so.
  Rows all(int64_t count, int64_t depth) {
    if (kType == WeightType::int8 && plan_.has_vnni) {
      const int64_t size = padded(depth);
      for (int64_t row = 0; row < count; ++row) {
        uint8_t* high = bytes_ + row * 2 * size;
        uint8_t* low = high + size;
        const float scale = quantize(numbers_[row], size, high, low);
        quantized_[row] = {reinterpret_cast<const uint32_t*>(high),
                           reinterpret_cast<const uint32_t*>(low), scale};
      }
    }
    return {count, numbers_, quantized_};
  }

  // Adds the products of rows with panels of a matrix to sums[panel - panels.begin][row]. A matrix
  // that is a little too large for L2 is read backwards every other time: the panels that were read
  // last are still there.
  void product(const StreamMatrix& matrix, Range panels, const Rows& rows, const Sums& sums,
               bool backwards = false) const {
    if (matrix.depth == 0) return fill(panels.end - panels.begin, rows.count, sums);
#if defined(FASTLSTM_VNNI)
    if (kType == WeightType::int8 && plan_.has_vnni) {
      return each_block<kMaxQuantizedRows>(
          panels, rows, [&](int64_t panel, int64_t row, int count) {
            const QuantizedRow* block = rows.quantized + row;
            multiply_quantized_block<1>(count, matrix, panel, block,
                                        sums.at(panel - panels.begin, row));
          });
    }
#endif
    const int64_t pairs = rows.count == 1 ? (panels.end - panels.begin) / 2 : 0;
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t pair = 2 * (backwards ? pairs - 1 - i : i);
      multiply<kType, 1, 2>(matrix, panels.begin + pair, rows.numbers, sums.at(pair, 0));
    }
    const Range rest = {panels.begin + 2 * pairs, panels.end};
    each_block<kMaxRows>(rest, rows, [&](int64_t p, int64_t row, int count) {
      multiply_block<1>(count, matrix, p, rows.numbers + row, sums.at(p - panels.begin, row));
    });
  }

  // What a product with a matrix without columns leaves.
  static void fill(int64_t panels, int64_t rows, const Sums& sums) {
    if (!sums.initial) return;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t row = 0; row < rows; ++row) {
        const Sums at = sums.at(panel, row);
        std::memcpy(at.data, at.initial, kPanel * sizeof(float));
      }
    }
  }

  // Calls visit(panel, first row, rows) for blocks of up to kMost rows, which are about equal.
  template <int kMost, class Visit>
  static void each_block(Range panels, const Rows& rows, const Visit& visit) {
    const int64_t blocks = ceil_div(rows.count, kMost);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      for (int64_t i = 0; i < blocks; ++i) {
        const Range block = share(rows.count, i, blocks);
        visit(panel, block.begin, static_cast<int>(block.end - block.begin));
      }
    }
  }

  template <int kRows>
  static void multiply_block(int count, const StreamMatrix& matrix, int64_t panel,
                             const float* const* rows, const Sums& sums) {
    if (count == kRows) return multiply<kType, kRows, 1>(matrix, panel, rows, sums);
    if constexpr (kRows < kMaxRows) multiply_block<kRows + 1>(count, matrix, panel, rows, sums);
  }

#if defined(FASTLSTM_VNNI)
  template <int kRows>
  static void multiply_quantized_block(int count, const StreamMatrix& matrix, int64_t panel,
                                       const QuantizedRow* rows, const Sums& sums) {
    if (count == kRows) return multiply_quantized<kRows>(matrix, panel, rows, sums);
    if constexpr (kRows < kMaxQuantizedRows) {
      multiply_quantized_block<kRows + 1>(count, matrix, panel, rows, sums);
    }
  }
#endif

  // The cells of step t of the block: turns gate sums into c and h. Without a projection h goes to
  // `after`, and to y if this is the last layer.
  template <bool kPeepholes>
  void update(const StreamLayer& layer, Range panels, int64_t t, float* after, float* y) const {
    const int64_t H = plan_.H, B = plan_.B;
    float* out = plan_.has_projection ? plan_.unprojected : after;
    if (plan_.has_projection) y = nullptr;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t unit = panel * kUnits;
      with_lanes<kUnits>(unit, H, [&](auto lanes) {
        Peepholes<Vector> peepholes{};
        if constexpr (kPeepholes) {
          const float* from = layer.peepholes + panel * 3 * kUnits;
          peepholes = {load(from), load(from + kUnits), load(from + 2 * kUnits)};
        }
        for (int64_t b = 0; b < B; ++b) {
          const float* from = sums(panel, t * B + b);
          Gates<Vector> gates = {load(from), load(from + kUnits), load(from + 2 * kUnits),
                                 load(from + 3 * kUnits)};
          float* c_row = layer.c + b * padded(H) + unit;
          Vector c = load(c_row);
          const Vector h = cell_forward<StreamSimd, kPeepholes>(gates, peepholes, c);
          StreamSimd::store(c_row, c, lanes);
          StreamSimd::store(out + b * padded(H) + unit, h, lanes);
          if (y) StreamSimd::store(y + b * call_.y_stride[1] + unit, h, lanes);
        }
      });
    }
  }

  // Multiplies what update() wrote with W_hr. A panel of W_hr has kPanel rows.
  void project(const StreamLayer& layer, float* after, float* y) {
    const int64_t B = plan_.B, P = plan_.P;
    team_.barrier();
    for (int64_t b = 0; b < B; ++b) numbers_[b] = plan_.unprojected + b * padded(plan_.H);
    const Range panels = share(ceil_div(P, kPanel), team_.thread(), team_.size());
    const Rows rows = all(B, plan_.H);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      std::memset(projected_, 0, B * kPanel * sizeof(float));
      product(layer.weight_hr, {panel, panel + 1}, rows, {projected_, 0, nullptr});
      const size_t size = lesser(kPanel, P - panel * kPanel) * sizeof(float);
      for (int64_t b = 0; b < B; ++b) {
        const float* from = projected_ + b * kPanel;
        std::memcpy(after + b * padded(P) + panel * kPanel, from, size);
        if (y) std::memcpy(y + b * call_.y_stride[1] + panel * kPanel, from, size);
      }
    }
  }

  const StreamPlan& plan_;
  const StreamCall& call_;
  Team team_;
  int64_t slot_, row_stride_ = 0;
  const float** numbers_;
  float *input_, *projected_;
  QuantizedRow* quantized_;
  uint8_t* bytes_;
};

template <WeightType kType>
void run(StreamPlan& plan, const StreamCall& call) {
  int64_t slot = plan.slot;
  auto* const progress = static_cast<Progress*>(plan.progress);
  run_team(progress, plan.num_threads, plan.most_threads, [&](Team team) {
    const int64_t last = Steps<kType>(plan, call, team).run();
    if (team.thread() == 0) slot = last;
  });
  plan.slot = slot;
}

}  // namespace

int stream_lanes() { return kUnits; }

bool stream_has_vnni() {
#if defined(FASTLSTM_VNNI)
  return __builtin_cpu_supports(FASTLSTM_VNNI);
#else
  return false;
#endif
}

void stream_run(StreamPlan& plan, const StreamCall& call) {
  if (plan.type == WeightType::float32) return run<WeightType::float32>(plan, call);
  if (plan.type == WeightType::bfloat16) return run<WeightType::bfloat16>(plan, call);
  run<WeightType::int8>(plan, call);
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
