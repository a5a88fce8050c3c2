// Calls of one step of a few rows, such as those of an LSTMCell, in both directions.
//
// Such a call is over in microseconds, in which a barrier of two threads takes about one. So each
// thread owns some units of hidden state, from the products to the results, and waits once at most.
// Weights are read as they lie, once: in both passes a thread reads the rows of W_ih and W_hh that
// belong to its units.
#pragma once

#include "arrays.h"
#include "unpacked.h"

namespace fastlstm::cpu {
namespace {

// Whether the classes below run a call: one without a projection, lengths, resets and prepacked
// weights, of so few rows that packing the weights takes longer than it saves. With long sums that
// is more rows than with short ones, because the lanes of each sum have to be added up; and with
// bfloat16 fewer, because packed pairs of numbers are multiplied at twice the speed.
inline bool is_single_step(const LstmShape& shape) {
  const int64_t depth = shape.I + shape.H;
  const int64_t rows = shape.dtype == DType::bfloat16 ? lesser(greater(depth / 64, 6), 16)
                                                      : lesser(greater(depth / 8, 16), 64);
  return shape.T == 1 && shape.B <= rows && shape.P == 0 && !shape.lengths && !shape.reset;
}

// Bytes of workspace that such a call of SingleForward or SingleBackward needs.
template <template <class> class Pass, class Call>
int64_t single_step_workspace(const LstmShape& shape, int num_threads) {
  return is_single_step(shape) ? workspace_for<Pass, Call>(shape, num_threads) : 0;
}

// What both passes need: the work of a thread.
template <class S>
class SingleStep : protected Arrays<S> {
 protected:
  using Arrays<S>::shape_;
  using V = Simd<Sum<S>>;
  static constexpr int kUnits = kLanes<S>;

  SingleStep(const LstmCall& call, int threads, int times)
      : Arrays<S>(call.shape),
        panels_(ceil_div(shape_.H, kUnits)),
        threads_(static_cast<int>(
            lesser(worthwhile_threads(shape_, threads, times), shape_.G * panels_))),
        most_threads_(threads),
        workspace_(call.workspace),
        progress_(workspace_.take<Progress>(threads_)) {}

  // Calls visit(group, panels) for the panels of units that a thread of a team owns.
  template <class Visit>
  FASTLSTM_INLINE void for_each_part(const Team& team, const Visit& visit) const {
    for_each_group(share(shape_.G * panels_, team.thread(), team.size()), panels_, visit);
  }

  const int64_t panels_;              // of a group
  const int threads_, most_threads_;  // that run, and that the caller allows
  Workspace workspace_;               // its pieces are taken in the order of the members
  Progress* const progress_;
};

template <class S>
class SingleForward : SingleStep<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::offset, Arrays<S>::state,
      Arrays<S>::row_of, SingleStep<S>::shape_, SingleStep<S>::panels_, SingleStep<S>::threads_,
      SingleStep<S>::workspace_, SingleStep<S>::progress_, SingleStep<S>::for_each_part,
      SingleStep<S>::kUnits;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;

 public:
  SingleForward(const LstmForward& call, int num_threads)
      : SingleStep<S>(call, num_threads, 1),
        call_(call),
        gate_sums_(workspace_.template take<Sum<S>>(threads_ * shape_.B * kPanelWidth<S>)) {}

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    run_team(progress_, threads_, this->most_threads_, [this](Team team) {
      Sum<S>* gate_sums = gate_sums_ + team.thread() * shape_.B * kPanelWidth<S>;
      for_each_part(team, [&](int64_t group, Range panels) {
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
          step(group, panel * kUnits, gate_sums);
        }
      });
    });
  }

 private:
  const S* input(int64_t b, int64_t g) const {
    return in(call_.input) + offset(call_.input_stride, 0, b, g);
  }

  // Computes one vector of units in every row.
  void step(int64_t group, int64_t unit, Sum<S>* gate_sums) const {
    const int64_t H = shape_.H;
    const GateWeight<S> weights[] = {{of_group(call_.weight_ih, group), shape_.I},
                                     {of_group(call_.weight_hh, group), H}};
    dot_gates<S>(
        weights, H, unit, shape_.B, false,
        [&](int64_t b, int i) {
          return i == 0 ? input(b, group) : in(call_.hx) + state(group, b) * H;
        },
        [&](int64_t b) { return gate_sums + b * kPanelWidth<S>; });
    with_lanes<kUnits>(unit, H, [&](auto lanes) {
      if (call_.weight_ch.data) {
        update<true>(group, unit, gate_sums, lanes);
      } else {
        update<false>(group, unit, gate_sums, lanes);
      }
    });
  }

  template <bool kPeepholes, class Lanes>
  void update(int64_t group, int64_t unit, const Sum<S>* gate_sums, Lanes lanes) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
    }
    Value bias[4] = {};
    for (const LstmWeight* each : {&call_.bias_ih, &call_.bias_hh}) {
      for (int gate = 0; gate < 4 && each->data; ++gate) {
        bias[gate] += V::load(of_group(*each, group) + gate * H + unit, lanes);
      }
    }
    for (int64_t b = 0; b < shape_.B; ++b, gate_sums += kPanelWidth<S>) {
      const auto gate_sum = [&](int gate) {
        const Value sum = V::load(gate_sums + gate * kUnits, AllLanes{}) + bias[gate];
        return shape_.I ? sum : sum + V::load(input(b, group) + gate * H + unit, lanes);
      };
      Gates<Value> gates = {gate_sum(0), gate_sum(1), gate_sum(2), gate_sum(3)};
      const int64_t at = state(group, b) * H + unit, row = row_of(0, b, group);
      Value c = V::load(in(call_.cx) + at, lanes);
      if (call_.checkpoints) save_checkpoint(at, unit, c, lanes);
      const Value h = cell_forward<V, kPeepholes>(gates, weight, c);
      V::store(out(call_.hy) + at, h, lanes);
      V::store(out(call_.cy) + at, c, lanes);
      if (call_.y) V::store(out(call_.y) + row * H + unit, h, lanes);
      if (call_.cells) V::store(out(call_.cells) + row * H + unit, c, lanes);
      if (call_.reserve) {
        S* reserve = out(call_.reserve) + row * 5 * H + unit;
        store_gates<V>(reserve, H, gates, lanes);
        V::store(reserve + 4 * H, c, lanes);
      }
    }
  }

  // The checkpoint (G, B, 2H) before the step.
  template <class Lanes>
  void save_checkpoint(int64_t at, int64_t unit, Value c, Lanes lanes) const {
    Sum<S>* to = static_cast<Sum<S>*>(call_.checkpoints) + 2 * (at - unit) + unit;
    V::store(to, V::load(in(call_.hx) + at, lanes), lanes);
    V::store(to + shape_.H, c, lanes);
  }

  const LstmForward& call_;
  Sum<S>* const gate_sums_;
};

// A thread computes the digates of its units, the gradients of its rows of the weights, and what
// its digates add to dx and dhx. The sums of all threads are added up at the end, in a fixed order.
template <class S>
class SingleBackward : SingleStep<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::offset, Arrays<S>::state,
      Arrays<S>::row_of, SingleStep<S>::shape_, SingleStep<S>::panels_, SingleStep<S>::threads_,
      SingleStep<S>::workspace_, SingleStep<S>::progress_, SingleStep<S>::for_each_part,
      SingleStep<S>::kUnits;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;

 public:
  SingleBackward(const LstmBackward& call, int num_threads)
      : SingleStep<S>(call, num_threads, 2),
        call_(call),
        num_threads_(num_threads),
        has_dx_(call.dinput && shape_.I),
        dx_columns_(ceil_div(shape_.I, kUnits) * kUnits),
        stride_((dx_columns_ / kUnits + panels_ | 1) * kUnits),
        factors_(workspace_.template take<Sum<S>>(threads_ * shape_.B * kRowsAtOnce)),
        inputs_(workspace_.template take<S>(threads_ * shape_.B * stride_)),
        sums_(workspace_.template take<Sum<S>>(threads_ * shape_.G * shape_.B * stride_)),
        digates_(workspace_.template take<S>(shape_.G * shape_.B * 4 * shape_.H)),
        recomputed_(workspace_.template take<S>(
            shape_.checkpoint_every ? shape_.G * shape_.B * 7 * shape_.H : 0)) {
    if (!shape_.checkpoint_every) return;
    const size_t bytes = SingleForward<S>(again(nullptr), num_threads).workspace_bytes();
    forward_memory_ = workspace_.template take<char>(static_cast<int64_t>(bytes));
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    if (shape_.checkpoint_every) {
      const LstmForward call = again(forward_memory_);
      SingleForward<S>(call, num_threads_).run();
    }
    run_team(progress_, threads_, this->most_threads_, [this](Team team) {
      for_each_part(team, [&](int64_t group, Range panels) {
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
          with_lanes<kUnits>(panel * kUnits, shape_.H, [&](auto lanes) {
            if (call_.weight_ch.data) {
              update<true>(group, panel * kUnits, lanes);
            } else {
              update<false>(group, panel * kUnits, lanes);
            }
          });
        }
        multiply(team, group, {panels.begin * kUnits, lesser(panels.end * kUnits, shape_.H)});
      });
      team.barrier();
      add_up(team);
    });
  }

 private:
  // The forward pass of the same step, whose reserve is kept in the workspace.
  LstmForward again(void* workspace) const {
    const int64_t states = shape_.G * shape_.B * shape_.H;
    LstmForward again{};
    static_cast<LstmCall&>(again) = call_;
    again.workspace = workspace;
    again.reserve = recomputed_;
    again.hy = recomputed_ + 5 * states, again.cy = recomputed_ + 6 * states;
    return again;
  }

  const S* reserve(int64_t b, int64_t g) const {
    const S* all = shape_.checkpoint_every ? recomputed_ : in(call_.reserve);
    return all + row_of(0, b, g) * 5 * shape_.H;
  }
  // (4H)
  S* digates(int64_t b, int64_t g) const {
    S* all = call_.dinput && !shape_.I ? out(call_.dinput) : digates_;
    return all + row_of(0, b, g) * 4 * shape_.H;
  }
  // A thread's part of dx and dhx.
  Sum<S>* sums(int thread, int64_t b, int64_t g) const {
    return sums_ + (thread * shape_.G * shape_.B + state(g, b)) * stride_;
  }

  // Computes digates and dcx of one vector of units in every row, and adds up the gradients of
  // biases and peepholes.
  template <bool kPeepholes, class Lanes>
  void update(int64_t group, int64_t unit, Lanes lanes) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight, dweight{};
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
    }
    Gates<Value> dbias{};
    for (int64_t b = 0; b < shape_.B; ++b) {
      const int64_t at = state(group, b) * H + unit;
      const Gates<Value> gates = load_gates<V>(reserve(b, group) + unit, H, lanes);
      const Value c = V::load(reserve(b, group) + 4 * H + unit, lanes);
      Value dh = {}, dc = {};
      if (call_.dy)
        dh += V::load(in(call_.dy) + offset(call_.dy_stride, 0, b, group) + unit, lanes);
      if (call_.dhy) dh += V::load(in(call_.dhy) + at, lanes);
      if (call_.dcy) dc += V::load(in(call_.dcy) + at, lanes);
      if (call_.dcells) dc += V::load(in(call_.dcells) + row_of(0, b, group) * H + unit, lanes);
      const Value c_prev = V::load(in(call_.cx) + at, lanes);
      const Gates<Value> d =
          cell_backward<V, kPeepholes>(gates, c_prev, c, dh, weight, dc, dweight);
      V::store(out(call_.dcx) + at, dc, lanes);
      store_gates<V>(digates(b, group) + unit, H, d, lanes);
      dbias = {dbias.i + d.i, dbias.f + d.f, dbias.g + d.g, dbias.o + d.o};
    }
    if (call_.dbias) {
      store_gates<V>(static_cast<Sum<S>*>(call_.dbias) + group * 4 * H + unit, H, dbias, lanes);
    }
    if (!kPeepholes || !call_.dweight_ch) return;
    Sum<S>* to = static_cast<Sum<S>*>(call_.dweight_ch) + group * 3 * H + unit;
    V::store(to, dweight.i, lanes);
    V::store(to + H, dweight.f, lanes);
    V::store(to + 2 * H, dweight.o, lanes);
  }

  // The products of the digates of some units, gate by gate.
  void multiply(const Team& team, int64_t group, Range units) const {
    const int64_t G = shape_.G, B = shape_.B, H = shape_.H, I = shape_.I;
    const int64_t count = units.end - units.begin;
    Sum<S>* factors = factors_ + team.thread() * B * kRowsAtOnce;
    S* inputs = inputs_ + team.thread() * B * stride_;
    for (int64_t b = 0; b < B; ++b) {
      const S* x = in(call_.input) + offset(call_.input_stride, 0, b, group);
      const S* h = in(call_.hx) + state(group, b) * H;
      if (I) std::memcpy(static_cast<void*>(inputs + b * stride_), x, I * sizeof(S));
      std::memcpy(static_cast<void*>(inputs + b * stride_ + dx_columns_), h, H * sizeof(S));
    }
    const RowsOf<const S> x = {inputs, stride_}, h = x.from(dx_columns_);
    const RowsOf<Sum<S>> dx = {sums(team.thread(), 0, group), stride_}, dh = dx.from(dx_columns_);
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * H + units.begin;
      const RowsOf<const S> d = {digates(0, group) + row, G * 4 * H};
      const auto gradient = [&](void* dweight, RowsOf<const S> right, int64_t columns) {
        if (!dweight) return;
        Sum<S>* to = static_cast<Sum<S>*>(dweight) + (group * 4 * H + row) * columns;
        multiply_transposed<S>(d, right, B, count, columns, factors, to);
      };
      const auto product = [&](const LstmWeight& weight, int64_t columns, RowsOf<Sum<S>> to) {
        const S* from = of_group(weight, group) + row * columns;
        multiply_unpacked<S>(from, columns, count, d, B, factors, to, gate > 0);
      };
      gradient(call_.dweight_ih, x, I);
      gradient(call_.dweight_hh, h, H);
      if (has_dx_) product(call_.weight_ih, I, dx);
      product(call_.weight_hh, H, dh);
    }
  }

  // dx and dhx: the sums of the threads, and of the groups if they share dx.
  void add_up(const Team& team) const {
    const int64_t G = shape_.G, H = shape_.H, I = shape_.I;
    const auto add_group = [&](Value& sum, int64_t b, int64_t g, int64_t at) {
      for (int thread = 0; thread < team.size(); ++thread) {
        const Range mine = share(G * panels_, thread, team.size());
        const bool has_part = mine.begin < (g + 1) * panels_ && mine.end > g * panels_;
        if (has_part) sum += V::load(sums(thread, b, g) + at, AllLanes{});
      }
    };
    for_each_group(
        share(G * panels_, team.thread(), team.size()), panels_, [&](int64_t g, Range panels) {
          for_each_vector({g, {0, shape_.B}, panels, 0}, H, [&](int64_t b, int64_t at, auto lanes) {
            Value sum = {};
            add_group(sum, b, g, dx_columns_ + at);
            V::store(out(call_.dhx) + state(g, b) * H + at, sum, lanes);
          });
        });
    if (!has_dx_) return;
    const bool is_shared = call_.dinput_stride[2] == 0;
    const int64_t vectors = dx_columns_ / kUnits;
    for_each_group(
        share((is_shared ? 1 : G) * vectors, team.thread(), team.size()), vectors,
        [&](int64_t group, Range columns) {
          for_each_vector(
              {group, {0, shape_.B}, columns, 0}, I, [&](int64_t b, int64_t at, auto lanes) {
                Value sum = {};
                for (int64_t g = group; g < (is_shared ? G : group + 1); ++g)
                  add_group(sum, b, g, at);
                V::store(out(call_.dinput) + offset(call_.dinput_stride, 0, b, group) + at, sum,
                         lanes);
              });
        });
  }

  // Calls visit(row, column, lanes) for every vector of a part.
  template <class Visit>
  void for_each_vector(const Tile& tile, int64_t columns, const Visit& visit) const {
    Arrays<S>::for_each_vector(tile, kUnits, columns, visit);
  }

  const LstmBackward& call_;
  const int num_threads_;  // that the caller allows
  const bool has_dx_;
  const int64_t dx_columns_;  // in whole vectors
  const int64_t stride_;  // an odd number of vectors, so that rows fall into different sets of L1
  Sum<S>* const factors_;
  S* const inputs_;      // (threads, B, stride): x, then h'
  Sum<S>* const sums_;   // (threads, G, B, stride): of dx, then of dhx
  S* const digates_;     // (B, G, 4H)
  S* const recomputed_;  // (B, G, 5H) the reserve, hy and cy, if the forward pass saved none
  char* forward_memory_ = nullptr;
};

}  // namespace
}  // namespace fastlstm::cpu
