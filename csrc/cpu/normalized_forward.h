// The forward recurrence of LSTMs with layer norm.
//
// A step has three phases: the products z = W_hh (hidden_mask * h') with their moments, the gates
// and c~ with its moments, and h. Between two phases a thread needs the moments of whole rows. If
// the call is divided by rows, each thread computes them alone; else the threads wait for each
// other after every phase.
#pragma once

#include "../layer_norm.h"
#include "projection.h"
#include "row_sums.h"
#include "states.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class NormalizedForward : NormalizedArrays<S> {
  using Base = NormalizedArrays<S>;
  using Base::in, Base::out, Base::of_group, Base::offset, Base::time_of, Base::row_of, Base::state,
      Base::row, Base::prepare_order, Base::for_each_panel, Base::units, Base::measure,
      Base::states, Base::shape_, Base::order_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kUnits = kLanes<S>;

  // Pointers to the data of one row of the batch at one step.
  struct alignas(64) Row {
    const S* igates;       // (4H)
    const S* h_prev;       // (H) h'
    const S* operand;      // (H) hidden_mask * h'
    const S* keep_h;       // (H) or null
    const S* keep_c;       // (H) or null
    Sum<S>* c;             // (H) c' becomes c
    S* h;                  // (H)
    S* cells;              // (H) or null
    S* reserve;            // (9H) or null
    Moments<Sum<S>> norm;  // of z, then of c~
  };

 public:
  NormalizedForward(const LayerNormForward& call, int num_threads)
      : Base(call.shape),
        call_(call),
        panels_(ceil_div(shape_.H, kUnits)),
        most_threads_(num_threads),
        threads_(worthwhile_threads(shape_, num_threads, 1)),
        weights_fit_l2_(plan_for(threads_).weights_fit_l2),
        workspace_(call.workspace),
        progress_(workspace_.take<Progress>(threads_)),
        rows_(shape_, threads_, workspace_),
        zeros_(workspace_.take<S>(shape_.H)),
        masked_(workspace_.take<S>(threads_ * states() * shape_.H)),
        h_(shape_, call.y, 1, workspace_),
        states_(call, h_, workspace_),
        z_sums_(shape_, threads_, workspace_),
        c_sums_(shape_, threads_, workspace_),
        gate_sums_(workspace_.take<Sum<S>>(states() * panels_ * kPanelWidth<S>)),
        row_blocks_(workspace_.take<Word<S>>(threads_ * row_block_words())),
        weight_hh_(workspace_.take<Word<S>>(shape_.G * panels_ * panel_words<S>(shape_.H))) {
    int64_t* order = workspace_.take<int64_t>(shape_.B);
    if (!shape_.by_length || !plan_for(threads_).cuts_rows() || threads_ == 1) return;
    order_ = order;
    states_.read_in(order);
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    run_team(progress_, threads_, most_threads_, [this](Team team) {
      const TileScope tiles;
      const Plan plan = plan_for(team.size());
      prepare(team, plan);
      team.barrier();
      const auto for_each_tile = [&](const auto& visit) {
        plan.for_each_tile(shape_, team.thread(), visit);
      };
      const Phase phase(shape_, team, plan);
      for_each_tile([&](const Tile& tile) { states_.start(tile); });
      run_phases(
          plan, shape_, team, {0, shape_.T},
          [&](const Tile& tile, int64_t s) { multiply(tile, s, phase); },
          [&](const Tile& tile, int64_t) { update_cells(tile, phase); },
          [&](const Tile& tile, int64_t) { update_hidden(tile, phase); });
      for_each_tile([&](const Tile& tile) {
        states_.store_hy(tile, kUnits);
        states_.store_cy(tile);
      });
    });
  }

 private:
  int64_t row_block_words() const { return shape_.B * block_words<S>(shape_.H); }
  Plan plan_for(int threads) const {
    return Plan(shape_, threads, panels_,
                panels_ * panel_words<S>(shape_.H) * int64_t{sizeof(Word<S>)},
                shape_.H * int64_t{sizeof(S)});
  }
  // Of the i-th row of a step: z in the four gates of a panel, and later c~ and o in their place.
  Sum<S>* gate_sum(const Tile& tile, int64_t panel, int64_t i, const Phase& phase) const {
    const int64_t pair = tile.offset + (panel - tile.panels.begin) * tile.num_rows() + i;
    return gate_sums_ + (phase.pairs_before + pair) * kPanelWidth<S>;
  }
  // Packs the weights. A barrier must follow.
  void prepare(const Team& team, const Plan& plan) const {
    const int64_t H = shape_.H;
    if (team.thread() == 0) std::memset(static_cast<void*>(zeros_), 0, H * sizeof(S));
    prepare_order(team, plan);
    z_sums_.clear(team.thread());
    c_sums_.clear(team.thread());
    const Range mine = plan.panels_to_pack(shape_, team.thread());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      pack_gates(of_group(call_.weight_hh, i / panels_), H, H, i % panels_ * kUnits, 0, H,
                 weight_hh_ + i * panel_words<S>(H));
    }
  }

  // z of the rows that have step s, and its moments.
  void multiply(const Tile& tile, int64_t s, const Phase& phase) const {
    visit_rows(tile, s, phase.thread);
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    const int64_t depth = shape_.H;
    Word<S>* blocks = nullptr;
    if (kPieces<S> > 1 || count * depth * int64_t{sizeof(S)} > kRowBytes) {
      blocks = row_blocks_ + phase.thread * row_block_words();
    }
    for (int64_t k = 0; blocks && k < depth; k += kChunk<S>) {
      pack_row_blocks<S>(
          count, lesser(kChunk<S>, depth - k), [&](int64_t i) { return rows[i].operand + k; },
          blocks + words_of<S>(k) * count);
    }
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      multiply_panel(tile, panel, rows, count, blocks, gate_sum(tile, panel, 0, phase));
    }
    for (int64_t i = 0; i < count; ++i) {
      z_sums_.part(phase.thread, tile.group, i) =
          measure(tile, 4, [&](int64_t panel, int64_t, auto) {
            return load_gates<V>(gate_sum(tile, panel, i, phase), kUnits, AllLanes{});
          });
    }
  }

  FASTLSTM_INLINE void multiply_panel(const Tile& tile, int64_t panel, const Row* rows,
                                      int64_t count, const Word<S>* blocks, Sum<S>* sums) const {
    const int64_t depth = shape_.H;
    for (int64_t k = 0; k < depth; k += kChunk<S>) {
      Strips<S> strips = {panel_at(tile.group, panel, k), strip_words<S>(depth), nullptr,
                          kPanelWidth<S>};
      if (!weights_fit_l2_ && count > kFewToPrefetch) {
        const bool goes_on = k + kChunk<S> < depth;
        const int64_t next = panel + 1 < tile.panels.end ? panel + 1 : tile.panels.begin;
        strips.next =
            goes_on ? panel_at(tile.group, panel, k + kChunk<S>) : panel_at(tile.group, next, 0);
      }
      multiply_strips(strips, kStrips, count, lesser(kChunk<S>, depth - k), k > 0,
                      blocks ? blocks + words_of<S>(k) * count : nullptr, [&](int64_t i) {
                        return Operand<S>{rows[i].operand + k, sums + i * kPanelWidth<S>};
                      });
    }
  }

  // Lists the rows that have step s. Outputs of the other rows are set to zero, unless rows are
  // packed and have no place for them.
  void visit_rows(const Tile& tile, int64_t s, int thread) const {
    const int64_t g = tile.group, t = time_of(g, s), H = shape_.H;
    const CellNorms& norms = call_.norms;
    const int64_t unit = tile.panels.begin * kUnits;
    const auto clear = [&](auto* numbers) {
      std::memset(static_cast<void*>(numbers + unit), 0, units(tile) * sizeof(*numbers));
    };
    RowList<Row>& rows = rows_.start(tile, thread);
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      const int64_t b = row(place), at = row_of(t, b, g);
      const RowSteps row_steps(shape_, g, b);
      S* cells = call_.cells ? out(call_.cells) + at * H : nullptr;
      if (!row_steps.has_step(t)) {
        if (shape_.first_row) continue;
        if (call_.y) clear(h_.at(t, b, g));
        if (cells) clear(cells);
        continue;
      }
      Sum<S>* c = states_.c(g, b);
      const bool afresh = row_steps.is_reset(t), first = t == row_steps.first();
      if (afresh) clear(c);
      const S* h = afresh  ? zeros_
                   : first ? in(call_.hx) + state(g, b) * H
                           : h_.at(row_steps.before(t), b, g);
      Row& row = rows.data[rows.count++];
      row.igates = in(call_.input) + offset(call_.input_stride, t, b, g);
      row.h_prev = h;
      row.operand = masked(h, g, b, thread);
      row.keep_h = norms.keep_h ? in(norms.keep_h) + offset(norms.keep_h_stride, t, b, g) : nullptr;
      row.keep_c = norms.keep_c ? in(norms.keep_c) + offset(norms.keep_c_stride, t, b, g) : nullptr;
      row.c = c;
      row.h = h_.at(t, b, g);
      row.cells = cells;
      row.reserve = call_.reserve ? out(call_.reserve) + at * 9 * H : nullptr;
    }
  }

  // hidden_mask * h', for one thread.
  const S* masked(const S* h, int64_t g, int64_t b, int thread) const {
    if (!call_.norms.hidden_mask) return h;
    const S* mask = in(call_.norms.hidden_mask) + state(g, b) * shape_.H;
    S* to = masked_ + (thread * states() + state(g, b)) * shape_.H;
    for (int64_t unit = 0; unit < shape_.H; unit += kUnits) {
      with_lanes<kUnits>(unit, shape_.H, [&](auto lanes) {
        V::store(to + unit, V::load(mask + unit, lanes) * V::load(h + unit, lanes), lanes);
      });
    }
    return to;
  }

  // The gates and c, and the moments of c~.
  void update_cells(const Tile& tile, const Phase& phase) const {
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    for (int64_t i = 0; i < count; ++i) rows[i].norm = z_sums_.moments(phase.parts, tile.group, i);
    for_each_panel(tile, [&](int64_t panel, int64_t unit, auto lanes) {
      Sum<S>* sums = gate_sum(tile, panel, 0, phase);
      if (call_.weight_ch.data) {
        update<true>(rows, count, sums, tile.group, unit, lanes);
      } else {
        update<false>(rows, count, sums, tile.group, unit, lanes);
      }
    });
    if (!call_.norms.norm_c) return;
    for (int64_t i = 0; i < count; ++i) {
      c_sums_.part(phase.thread, tile.group, i) =
          measure(tile, 1, [&](int64_t panel, int64_t, auto) {
            return V::load(gate_sum(tile, panel, i, phase), AllLanes{});
          });
    }
  }

  template <bool kPeepholes, class Lanes>
  void update(const Row* rows, int64_t count, Sum<S>* sums, int64_t group, int64_t unit,
              Lanes lanes) const {
    const int64_t H = shape_.H;
    const double* clip = call_.norms.cell_clip;
    const Value limit = static_cast<Sum<S>>(clip ? *clip : 0) - Value{};
    const Gates<Value> gain =
        load_gates<V>(in(call_.norms.norm_hh) + group * 4 * H + unit, H, lanes);
    Peepholes<Value> weight;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
    }
    for (int64_t i = 0; i < count; ++i, sums += kPanelWidth<S>) {
      const Row& row = rows[i];
      const Gates<Value> z = load_gates<V>(sums, kUnits, AllLanes{});
      const Gates<Value> normal = row.norm.normalise(z);
      Gates<Value> gates = load_gates<V>(row.igates + unit, H, lanes);
      const Value c_prev = V::load(row.c + unit, lanes);
      gates.i += gain.i * normal.i;
      gates.f += gain.f * normal.f;
      gates.g += gain.g * normal.g;
      gates.o += gain.o * normal.o;
      if constexpr (kPeepholes) {
        gates.i += weight.i * c_prev;
        gates.f += weight.f * c_prev;
      }
      gates.i = V::sigmoid(gates.i);
      gates.f = V::sigmoid(gates.f);
      gates.g = V::tanh(gates.g);
      Value c = gates.f * c_prev + gates.i * gates.g;
      if (clip) c = V::clamp(c, -limit, limit);
      if constexpr (kPeepholes) gates.o += weight.o * c;
      gates.o = V::sigmoid(gates.o);
      V::store(sums, c, AllLanes{});
      V::store(sums + kUnits, gates.o, AllLanes{});
      if (row.keep_c) {
        const Value keep = V::load(row.keep_c + unit, lanes);
        c = keep * c_prev + (1 - keep) * c;
      }
      V::store(row.c + unit, c, lanes);
      if (row.cells) V::store(row.cells + unit, c, lanes);
      if (row.reserve) {
        S* reserve = row.reserve + unit;
        store_gates<V>(reserve, H, gates, lanes);
        V::store(reserve + 4 * H, c, lanes);
        store_gates<V>(reserve + 5 * H, H, z, lanes);
      }
    }
  }

  void update_hidden(const Tile& tile, const Phase& phase) const {
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    const int64_t H = shape_.H;
    const S* norm_c = in(call_.norms.norm_c);
    for (int64_t i = 0; norm_c && i < count; ++i) {
      rows[i].norm = c_sums_.moments(phase.parts, tile.group, i);
    }
    for_each_panel(tile, [&](int64_t panel, int64_t unit, auto lanes) {
      Value gain = {}, bias = {};
      if (norm_c) {
        gain = V::load(norm_c + tile.group * 2 * H + unit, lanes);
        bias = V::load(norm_c + tile.group * 2 * H + H + unit, lanes);
      }
      const Sum<S>* sums = gate_sum(tile, panel, 0, phase);
      for (int64_t i = 0; i < count; ++i, sums += kPanelWidth<S>) {
        const Row& row = rows[i];
        Value c = V::load(sums, AllLanes{});
        if (norm_c) c = gain * row.norm.normalise(c) + bias;
        Value h = V::load(sums + kUnits, AllLanes{}) * V::tanh(c);
        if (row.keep_h) {
          const Value keep = V::load(row.keep_h + unit, lanes);
          h = keep * V::load(row.h_prev + unit, lanes) + (1 - keep) * h;
        }
        V::store(row.h + unit, h, lanes);
      }
    });
  }

  // A panel of packed W_hh (G, panels, strips, depth), from depth k on.
  const Word<S>* panel_at(int64_t group, int64_t panel, int64_t k) const {
    const int64_t at = (group * panels_ + panel) * panel_words<S>(shape_.H);
    return weight_hh_ + at + strip_words<S>(k);
  }

  const LayerNormForward& call_;
  const int64_t panels_;              // of a group
  const int most_threads_, threads_;  // that the caller allows, and that run
  const bool weights_fit_l2_;
  Workspace workspace_;  // its pieces are taken in the order of the members below
  Progress* const progress_;
  const RowLists<Row> rows_;
  S* const zeros_;  // (H)
  S* const masked_;
  const HiddenStates<S> h_;
  States<S> states_;
  const RowSums<S> z_sums_, c_sums_;
  Sum<S>* const gate_sums_;
  Word<S>* const row_blocks_;
  Word<S>* const weight_hh_;
};

}  // namespace
}  // namespace fastlstm::cpu
