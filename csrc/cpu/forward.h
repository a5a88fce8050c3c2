// The forward recurrence: the steps of a call, in the order of each group.
//
// Pre-activations are summed up in gate sums: the four gates of one vector of hidden units, of one
// row at one step. Steps are processed in blocks. For each block a thread projects the input of its
// tiles into gate sums (so igates never leave its cache). Then it runs the steps: it adds h' W_hh^T
// to the gate sums of a step and computes the LSTM cell from them. h' is the row of y that the step
// before wrote; it is not copied.
//
// A backward pass that has checkpoints and no reserve runs these steps again (recompute.h). It uses
// the same code in the same blocks, so it gets the same bits.
//
// A call that uses each weight for a few rows only does not pack weights, because packing reads all
// of them too. It computes the gate sums as dot products with the weights as they lie.
#pragma once

#include "cell_options.h"
#include "cell_rows.h"
#include "few_rows.h"
#include "igates.h"
#include "projection.h"
#include "states.h"

namespace fastlstm::cpu {
namespace {

// Bytes of the gate sums of one block of steps, per thread: half of a usual L2.
constexpr int64_t kBlockBytes = 256 * 1024;
// The least rows of a block, so that W_ih is not read too often.
constexpr int64_t kBlockRows = 192;

template <class S>
class Forward : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_of, Arrays<S>::row_of,
      Arrays<S>::state, Arrays<S>::row, Arrays<S>::prepare_order, Arrays<S>::shape_,
      Arrays<S>::hidden_size_, Arrays<S>::order_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  using Row = CellRow<S>;
  static constexpr int kUnits = kLanes<S>;

 public:
  // `recomputed` is not 0 if a backward pass recomputes steps. Then the reserve and h of that many
  // steps, and of the one before them, are kept in the workspace; h only if there is no y to read.
  Forward(const LstmForward& call, int num_threads, int64_t recomputed = 0)
      : Arrays<S>(call.shape),
        call_(call),
        recomputes_(recomputed > 0),
        panels_(ceil_div(shape_.H, kUnits)),
        streaming_(!call.prepacked && streams<S>(shape_)),
        most_threads_(num_threads),
        threads_(worthwhile_threads(shape_, num_threads, 1)),
        plan_(plan_for(threads_)),
        block_(steps_of_a_block()),
        packs_ih_(shape_.I && (call.prepacked || (!streaming_ && packs_whole()))),
        workspace_(call.workspace),
        prepacked_(call.prepacked),
        progress_(workspace_.take<Progress>(threads_)),
        rows_(workspace_.take<Row>(threads_ * shape_.B)),
        zeros_(workspace_.take<S>(hidden_size_)),
        h_(shape_, call.y, recomputes_ ? recomputed : 1, workspace_),
        reserve_(shape_, recomputed, recomputes_ ? 5 * shape_.H : 0, workspace_),
        states_(call, h_, workspace_),
        bias_(workspace_.take<Sum<S>>(shape_.G * panels_ * kPanelWidth<S>)),
        gate_sums_(
            workspace_.take<Sum<S>>(shape_.G * shape_.B * panels_ * block_ * kPanelWidth<S>)),
        row_blocks_(workspace_.take<Word<S>>(threads_ * row_block_words())),
        weight_hh_(weight_memory().template take<Word<S>>(
            streaming_ ? 0 : shape_.G * panels_ * panel_words<S>(hidden_size_))),
        igates_(call, panels_, block_, packs_ih_, streaming_, threads_, workspace_,
                weight_memory()),
        projection_(call, h_, threads_, workspace_),
        options_(call, h_, threads_ * shape_.B, workspace_) {
    int64_t* order = workspace_.take<int64_t>(shape_.B);
    if (!shape_.by_length || !plan_.cuts_rows() || threads_ == 1) return;
    order_ = order;
    igates_.read_in(order);
    projection_.read_in(order);
    states_.read_in(order);
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  static size_t prepacked_bytes(const LstmShape& shape) {
    Workspace weights(nullptr);
    const int64_t panels = shape.G * ceil_div(shape.H, kUnits);
    weights.take<Word<S>>(panels * panel_words<S>(shape.P ? shape.P : shape.H));
    weights.take<Word<S>>(panels * panel_words<S>(shape.I));
    return weights.bytes();
  }

  void run() const {
    run_team(progress_, threads_, most_threads_, [this](Team team) {
      const TileScope tiles;
      const Plan plan = plan_for(team.size());
      prepare(team);
      team.barrier();
      plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) { states_.start(tile); });
      run_steps(team, {0, shape_.T});
      if (shape_.P) {
        output_plan(plan).for_each_tile(shape_, team.thread(), [&](const Tile& tile) {
          states_.store_hy(tile, kStripWidth<S>);
        });
      } else {
        plan.for_each_tile(shape_, team.thread(),
                           [&](const Tile& tile) { states_.store_hy(tile, kUnits); });
      }
      plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) { states_.store_cy(tile); });
    });
  }

  // Packs the weights, and adds up the biases in the layout of gate sums. A barrier must follow.
  void prepare(const Team& team) const {
    const int64_t H = shape_.H, depth = hidden_size_;
    if (team.thread() == 0) std::memset(static_cast<void*>(zeros_), 0, depth * sizeof(S));
    const Plan plan = plan_for(team.size());
    prepare_order(team, plan);
    if (call_.weight_hr.data) projection_.prepare(team);
    const Range mine = plan.panels_to_pack(shape_, team.thread());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t group = i / panels_, unit = i % panels_ * kUnits;
      if (!streaming_ && !call_.is_prepacked) {
        const S* weight = of_group(call_.weight_hh, group);
        pack_gates(weight, H, depth, unit, 0, depth, weight_hh_ + i * panel_words<S>(depth));
      }
      if (packs_ih_ && !call_.is_prepacked) igates_.pack_panel(i);
      with_lanes<kUnits>(unit, H, [&](auto lanes) {
        for (int gate = 0; gate < 4; ++gate) {
          Value sum = {};
          for (const LstmWeight* bias : {&call_.bias_ih, &call_.bias_hh}) {
            if (bias->data) sum += V::load(of_group(*bias, group) + gate * H + unit, lanes);
          }
          V::store(bias_ + i * kPanelWidth<S> + gate * kUnits, sum, AllLanes{});
        }
      });
    }
  }

  int threads() const { return threads_; }  // at most
  Progress* progress() const { return progress_; }

  // Runs some steps again, from the checkpoint before the first of them.
  void recompute(Team& team, Range steps) const {
    const Plan plan = plan_for(team.size());
    plan.for_each_tile(shape_, team.thread(),
                       [&](const Tile& tile) { states_.restore(tile, steps.begin); });
    if (!h_.in_y()) team.barrier();
    run_steps(team, steps);
  }

  // The reserve (5H) and h (P) of a recomputed step.
  const S* reserve(int64_t t, int64_t b, int64_t g) const {
    return reserve_.row(time_of(g, t), b, g);
  }
  const S* h(int64_t t, int64_t b, int64_t g) const { return h_.at(t, b, g); }

 private:
  struct Scratch {
    Row* rows;
    Sum<S>* gate_sums;
    Word<S>* blocks;  // packed rows of h'
  };

  Workspace& weight_memory() { return call_.prepacked ? prepacked_ : workspace_; }
  // Words of packed h', all rows.
  int64_t row_block_words() const { return shape_.B * block_words<S>(hidden_size_); }
  Plan plan_for(int threads) const {
    const int64_t weight_bytes = panels_ * panel_words<S>(hidden_size_) * sizeof(Word<S>);
    Plan plan(shape_, threads, panels_, weight_bytes, hidden_size_ * int64_t{sizeof(S)});
    if (streaming_) plan.cut_panels(shape_);  // read weights once
    return plan;
  }
  Plan output_plan(Plan plan) const {
    plan.panels = projection_.strips();
    return plan;
  }
  int64_t steps_of_a_block() const {
    const int64_t pairs = plan_.pairs(shape_), rows = plan_.most_rows(shape_);
    int64_t block = kBlockBytes / (pairs * kPanelWidth<S> * int64_t{sizeof(Sum<S>)} + 1);
    if (block * rows < kBlockRows) block = ceil_div(kBlockRows, rows + 1);
    // All steps are one block if igates take less memory than W_ih, whose parts are then packed in
    // L1 as they are needed.
    const bool at_once = shape_.T * shape_.B <= shape_.I && !plan_.cuts_rows();
    return at_once ? shape_.T : lesser(block, shape_.T);
  }

  bool packs_whole() const { return block_ < shape_.T || plan_.cuts_rows(); }

  // Runs the steps in order, from the state in c and h.
  void run_steps(Team& team, Range steps) const {
    const Plan plan = plan_for(team.size());
    const Scratch scratch = {
        rows_ + team.thread() * shape_.B,
        gate_sums_ + plan.pairs_before(shape_, team.thread()) * block_ * kPanelWidth<S>,
        row_blocks_ + team.thread() * row_block_words(),
    };
    const auto step_of = [&](const Tile& tile, int64_t s) {
      if (s % block_ == 0 || s == steps.begin)
        project(tile, {s, steps.end}, team.thread(), scratch);
      if (!recomputes_ && states_.is_checkpoint(s)) states_.save_checkpoint(tile, s);
      step(tile, s, scratch);
    };
    if (recomputes_ && h_.in_y()) {  // all h' are in y: no barriers
      plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) {
        for (int64_t s = steps.begin; s < steps.end; ++s) step_of(tile, s);
      });
    } else if (shape_.P) {
      plan.for_each_step(
          shape_, team, steps, step_of, output_plan(plan),
          [&](const Tile& tile, int64_t s) { projection_.step(tile, s, team.thread()); });
    } else {
      plan.for_each_step(shape_, team, steps, step_of);
    }
  }

  // Computes igates into the gate sums of the steps of one block, those in `steps`.
  void project(const Tile& tile, Range steps, int thread, const Scratch& scratch) const {
    const auto fill = [&](Range range) {
      return igates_.fill(tile, range, thread,
                          gate_sum(tile, tile.panels.begin, range.begin % block_, 0, scratch));
    };
    const int64_t first = steps.begin - steps.begin % block_;
    const Range block = {first, lesser(first + block_, shape_.T)};
    const int64_t last = lesser(steps.end, block.end);
    const bool is_part = steps.begin > block.begin || last < block.end;
    if (fill({steps.begin, last}) < kAlikeRows && is_part)
      fill(block);  // as forward did, for the same bits
  }

  void step(const Tile& tile, int64_t s, const Scratch& scratch) const {
    const Row* rows = scratch.rows;
    const int64_t count = visit_rows(tile, s, scratch.rows);
    const int64_t depth = hidden_size_, at = s % block_;
    // Of a few rows, all products come first and then all cells, so that their divisions overlap.
    const bool few = !streaming_ && is_few_rows<S>(count, depth) &&
                     (plan_.weights_fit_l2 || count <= kFewToPrefetch);
    if (few) {
      const int64_t first = tile.panels.begin;
      const Panels<S> panels = {panel_at(tile.group, first, 0), tile.num_panels(),
                                panel_words<S>(depth), tile.num_rows() * block_ * kPanelWidth<S>};
      add_products(count, depth, panels, [&](int64_t i) {
        return Operand<S>{rows[i].h, gate_sum(tile, first, at, rows[i].place, scratch)};
      });
    }
    // Many rows, and split floats, are packed once for all panels. A few rows are in L1 anyway.
    const bool packs_rows =
        !streaming_ && !few && (kPieces<S> > 1 || count * depth * int64_t{sizeof(S)} > kRowBytes);
    for (int64_t k = 0; packs_rows && k < depth; k += kChunk<S>) {
      pack_row_blocks<S>(
          count, lesser(kChunk<S>, depth - k), [&](int64_t i) { return rows[i].h + k; },
          scratch.blocks + words_of<S>(k) * count);
    }
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      Sum<S>* gate_sums = gate_sum(tile, panel, at, 0, scratch);
      const int64_t unit = panel * kUnits;
      if (streaming_) {
        const GateWeight<S> weights[] = {{of_group(call_.weight_hh, tile.group), depth}, {}};
        dot_gates<S>(
            weights, shape_.H, unit, count, true, [&](int64_t i, int) { return rows[i].h; },
            [&](int64_t i) { return gate_sums + rows[i].place * kPanelWidth<S>; });
      } else if (!few) {
        add_product(tile, panel, rows, count, packs_rows ? scratch.blocks : nullptr, gate_sums);
      }
      const Sum<S>* bias = bias_ + (tile.group * panels_ + panel) * kPanelWidth<S>;
      with_lanes<kUnits>(unit, shape_.H, [&](auto lanes) {
        with_flags(call_.weight_ch.data, call_.options, [&](auto peepholes, auto options) {
          update<peepholes(), options()>(rows, count, gate_sums, bias, tile.group, unit, lanes);
        });
      });
    }
  }

  // Adds h' W_hh^T to the gate sums of a panel. `blocks` are the packed rows of h', or null.
  FASTLSTM_INLINE void add_product(const Tile& tile, int64_t panel, const Row* rows, int64_t count,
                                   const Word<S>* blocks, Sum<S>* gate_sums) const {
    const int64_t depth = hidden_size_;
    for (int64_t k = 0; k < depth; k += kChunk<S>) {
      Strips<S> strips = {panel_at(tile.group, panel, k), strip_words<S>(depth), nullptr,
                          kPanelWidth<S>};
      if (plan_.weights_fit_l2 || count <= kFewToPrefetch) {
        strips.next = nullptr;
      } else if (k + kChunk<S> < depth) {
        strips.next = panel_at(tile.group, panel, k + kChunk<S>);
      } else {
        const int64_t next = panel + 1 < tile.panels.end ? panel + 1 : tile.panels.begin;
        strips.next = panel_at(tile.group, next, 0);
      }
      multiply_strips(strips, kStrips, count, lesser(kChunk<S>, depth - k), true,
                      blocks ? blocks + words_of<S>(k) * count : nullptr, [&](int64_t i) {
                        return Operand<S>{rows[i].h + k,
                                          gate_sums + rows[i].place * kPanelWidth<S>};
                      });
    }
  }

  // Lists the rows that have step s. Outputs of the other rows are set to zero, unless rows are
  // packed and have no place for them.
  int64_t visit_rows(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t g = tile.group, t = time_of(g, s), H = shape_.H;
    const int64_t unit = tile.panels.begin * kUnits;
    const int64_t units = lesser(tile.panels.end * kUnits, H) - unit;
    const auto clear = [&](auto* numbers) {
      std::memset(static_cast<void*>(numbers + unit), 0, units * sizeof(*numbers));
    };
    int64_t count = 0;
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      const int64_t b = row(place), at = row_of(t, b, g);
      const RowSteps row_steps(shape_, g, b);
      S* cells = call_.cells ? out(call_.cells) + at * H : nullptr;
      if (!row_steps.has_step(t)) {
        if (shape_.first_row) continue;
        if (!shape_.P && call_.y && !recomputes_) clear(h_.at(t, b, g));
        if (cells) clear(cells);
        continue;
      }
      Sum<S>* c = states_.c(g, b);
      const bool afresh = row_steps.is_reset(t), first = t == row_steps.first();
      if (afresh) clear(c);
      rows[count++] = {
          place - tile.rows.begin,
          afresh  ? zeros_
          : first ? in(call_.hx) + state(g, b) * hidden_size_
                  : h_.at(row_steps.before(t), b, g),
          c,
          recomputes_ && h_.in_y() ? nullptr
          : shape_.P               ? projection_.hidden(g, b)
                                   : h_.at(t, b, g),
          cells,
          recomputes_     ? reserve_.row(s, b, g)
          : call_.reserve ? out(call_.reserve) + at * 5 * H
                          : nullptr,
      };
      if (!call_.options) continue;
      options_.set(rows + count - 1 - rows_, row_steps, t, b, g, {unit, unit + units},
                   rows[count - 1].h);
    }
    return count;
  }

  // Computes the LSTM cell for one vector of units in each of the rows.
  template <bool kPeepholes, bool kOptions, class Lanes>
  void update(const Row* rows, int64_t count, const Sum<S>* gate_sums, const Sum<S>* bias,
              int64_t group, int64_t unit, Lanes lanes) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
    }
    const PreActivations<S> inputs = {gate_sums, bias};
    if constexpr (!kOptions) {
      run_cells<S, kPeepholes>(rows, count, inputs, weight, H, unit, lanes);
    } else {
      for (int64_t r = 0; r < count; ++r) {
        Gates<Value> gates = inputs.all(rows[r]);
        Value c = V::load(rows[r].c + unit, lanes);
        const auto& options = *options_.row(rows + r - rows_);
        const Value h = options_.template cell<kPeepholes>(options, gates, weight, c, unit, lanes);
        V::store(rows[r].c + unit, c, lanes);
        if (rows[r].hidden) V::store(rows[r].hidden + unit, h, lanes);
        if (rows[r].cells) V::store(rows[r].cells + unit, c, lanes);
        if (rows[r].reserve) {
          S* reserve = rows[r].reserve + unit;
          store_gates<V>(reserve, H, gates, lanes);
          V::store(reserve + 4 * H, c, lanes);
        }
      }
    }
  }

  // The gate sums of a row at step `at` of the block. Those of a panel lie together, step by step.
  Sum<S>* gate_sum(const Tile& tile, int64_t panel, int64_t at, int64_t row,
                   const Scratch& scratch) const {
    const int64_t before = tile.offset + (panel - tile.panels.begin) * tile.num_rows();
    return scratch.gate_sums + (before * block_ + at * tile.num_rows() + row) * kPanelWidth<S>;
  }
  // A panel of packed W_hh (G, panels, strips, depth), from depth k on.
  const Word<S>* panel_at(int64_t group, int64_t panel, int64_t k) const {
    const int64_t at = (group * panels_ + panel) * panel_words<S>(hidden_size_);
    return weight_hh_ + at + strip_words<S>(k);
  }

  const LstmForward& call_;
  const bool recomputes_;
  const int64_t panels_;  // of a group
  const bool streaming_;
  const int most_threads_, threads_;  // that the caller allows, and that run
  const Plan plan_;                   // for all of them
  const int64_t block_;               // steps
  const bool packs_ih_;               // whole, before the first step
  Workspace workspace_;               // its pieces are taken in the order of the members below
  Workspace prepacked_;               // what the caller keeps: packed weights
  Progress* const progress_;
  Row* const rows_;
  S* const zeros_;  // (P)
  const HiddenStates<S> h_;
  const RingBuffer<S> reserve_;
  States<S> states_;
  Sum<S>* const bias_;
  Sum<S>* const gate_sums_;
  Word<S>* const row_blocks_;
  Word<S>* const weight_hh_;
  Igates<S> igates_;
  OutputProjection<S> projection_;
  const ForwardOptions<S> options_;
};

}  // namespace
}  // namespace fastlstm::cpu
