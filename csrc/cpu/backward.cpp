// The backward recurrence, compiled once per instruction set.
//
// Steps are processed in blocks, from the last forward step to the first. In each block the
// recurrence comes first. A step of a tile multiplies, for each strip of hidden units, the digates
// of the later step by W_hh, and computes the gradient of the cell from the product. It also adds
// to the gradients of the peepholes; dc is kept in full precision. If h is projected, every step
// has two stages: the product gives the gradient of h, and a second one, with W_hr, that of the
// cell's output. Then gradients.h adds the block's digates, which are still in cache, to the
// gradients of weights and input. If the forward pass saved no reserve, recompute.h recomputes the
// steps that a block needs.
#include "cell_options.h"
#include "gradients.h"
#include "kernels.h"
#include "recurrent_weight.h"
#include "single_step.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

template <class S>
class Backward : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_from_end,
      Arrays<S>::offset, Arrays<S>::row_of, Arrays<S>::state, Arrays<S>::row,
      Arrays<S>::prepare_order, Arrays<S>::for_each_vector, Arrays<S>::shape_,
      Arrays<S>::hidden_size_, Arrays<S>::order_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kUnits = kLanes<S>;
  static constexpr int kWidth = kStripWidth<S>;  // of a row of products

  // Pointers to the data of one row of the batch at one step.
  struct Row {
    const S* digates_after;  // (4H) of the step after this one in the forward order, or zeros
    S* dhx;                  // (P) if the row has no step left: the result to write; else null
    const S* dhy;            // (P) at the last forward step, else null
    const S* dy;             // (P) or null
    S* dh;                   // (P) with a projection
    const S* dcells;         // (H) or null
    const S* reserve;        // (5H)
    const S* c_prev;         // (H)
    Sum<S>* dc;              // (H)
    S* digates;              // (4H)
    S* hidden;               // (H) with a projection
  };

  // The part of a step to run: all of it, or, with a projection, the gradient of h or of the cell.
  enum class Stage { all, hidden, cell };

 public:
  Backward(const LstmBackward& call, int num_threads)
      : Arrays<S>(call.shape),
        call_(call),
        gates_(4 * shape_.H),
        block_(lesser(greater(kChunkRows<S> / greater(shape_.B, 1), 1), shape_.T)),
        most_threads_(num_threads),
        threads_(backward_threads(shape_, num_threads)),
        workspace_(call.workspace),
        weight_hh_(shape_, call.weight_hh, gates_, hidden_size_, workspace_),
        weight_hr_(shape_, call.weight_hr, shape_.P, shape_.H, workspace_),
        weights_fit_l2_(plan_for(threads_).weights_fit_l2),
        progress_(workspace_.take<Progress>(threads_)),
        rows_(workspace_.take<Row>(threads_ * shape_.B)),
        zeros_(workspace_.take<S>(widest())),
        dc_(workspace_.take<Sum<S>>(shape_.G * shape_.B * shape_.H)),
        dh_(workspace_.take<Sum<S>>(threads_ * shape_.B * kWidth)),
        dweight_ch_(workspace_.take<Sum<S>>(threads_ * dweight_ch_size())),
        row_blocks_(workspace_.take<Word<S>>(threads_ * row_block_words())),
        recomputation_(call, num_threads, block_, workspace_),
        buffers_(call, block_, workspace_),
        gradients_(call, recomputation_, buffers_, zeros_, threads_, workspace_),
        options_(call, threads_ * shape_.B, workspace_) {
    int64_t* order = workspace_.take<int64_t>(shape_.B);
    if (shape_.by_length && plan_for(threads_).cuts_rows() && threads_ > 1) order_ = order;
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    std::memset(static_cast<void*>(zeros_), 0, widest() * sizeof(S));
    run_team(progress_, threads_, most_threads_, [this](Team team) {
      const TileScope tiles;
      const Plan plan = plan_for(team.size());
      Plan hidden = plan;
      hidden.panels = weight_hh_.panels();
      const Scratch scratch = {
          rows_ + team.thread() * shape_.B,
          dh_ + team.thread() * shape_.B * kWidth,
          dweight_ch_ + team.thread() * dweight_ch_size(),
          row_blocks_ + team.thread() * row_block_words(),
      };
      const auto for_each_tile = [&](const auto& visit) {
        plan.for_each_tile(shape_, team.thread(), visit);
      };
      const auto all = [&](const Tile& tile, int64_t s) { step(Stage::all, tile, s, scratch); };
      const auto of_h = [&](const Tile& tile, int64_t s) { step(Stage::hidden, tile, s, scratch); };
      const auto of_cell = [&](const Tile& tile, int64_t s) {
        step(Stage::cell, tile, s, scratch);
      };
      prepare(team, plan, hidden, scratch);
      gradients_.prepare(team);
      recomputation_.prepare(team);
      team.barrier();
      for_each_tile([&](const Tile& tile) { start(tile); });
      hidden.for_each_tile(shape_, team.thread(),
                           [&](const Tile& tile) { copy_dhy_of_empty_rows(tile); });
      team.barrier();
      int64_t recomputed = shape_.T;
      for (int64_t first = 0; first < shape_.T; first += block_) {
        const Range block = {first, lesser(first + block_, shape_.T)};
        // A step reads c and h of the step before it.
        recomputed = recomputation_.reach(team, greater(shape_.T - block.end - 1, 0), recomputed);
        if (shape_.P) {
          hidden.for_each_step(shape_, team, block, of_h, plan, of_cell);
        } else {
          plan.for_each_step(shape_, team, block, all);
        }
        if (!plan.is_one_part()) team.barrier();
        for (int64_t group = 0; group < shape_.G; ++group) gradients_.add(team, group, block);
      }
      hidden.for_each_tile(shape_, team.thread(), [&](const Tile& tile) { of_h(tile, shape_.T); });
      for_each_tile([&](const Tile& tile) {
        of_cell(tile, shape_.T);
        store_dcx(tile);
      });
      team.barrier();
      if (call_.dweight_ch) sum_dweight_ch(team);
    });
  }

 private:
  struct Scratch {
    Row* rows;
    Sum<S>* dh;
    Sum<S>* dweight_ch;
    Word<S>* blocks;  // packed rows of digates or dh
  };

  Plan plan_for(int threads) const {
    return Plan(shape_, threads, ceil_div(shape_.H, kUnits), weight_hh_.bytes(),
                gates_ * int64_t{sizeof(S)});
  }

  // Packs W_hh and W_hr, and clears the sums.
  void prepare(const Team& team, const Plan& plan, const Plan& hidden,
               const Scratch& scratch) const {
    prepare_order(team, plan);
    weight_hh_.pack(team, hidden);
    if (shape_.P) weight_hr_.pack(team, plan);
    for (int64_t i = 0; i < dweight_ch_size(); ++i) scratch.dweight_ch[i] = 0;
  }
  // Sets dc to dcy, before the last step.
  void start(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) * shape_.H + unit;
      const Value zero = {};
      V::store(dc_ + at, call_.dcy ? V::load(in(call_.dcy) + at, lanes) : zero, lanes);
    });
  }

  // Copies dhy to dhx for rows of length 0.
  void copy_dhy_of_empty_rows(const Tile& tile) const {
    if (!shape_.lengths) return;
    for_each_vector(tile, kUnits, hidden_size_, [&](int64_t b, int64_t column, auto lanes) {
      if (RowSteps(shape_, tile.group, b).length) return;
      const int64_t at = state(tile.group, b) * hidden_size_ + column;
      const Value zero = {};
      V::store(out(call_.dhx) + at, call_.dhy ? V::load(in(call_.dhy) + at, lanes) : zero, lanes);
    });
  }

  void store_dcx(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) * shape_.H + unit;
      V::store(out(call_.dcx) + at, V::load(dc_ + at, lanes), lanes);
    });
  }

  void step(Stage stage, const Tile& tile, int64_t s, const Scratch& scratch) const {
    const Row* rows = scratch.rows;
    const int64_t count = visit_rows(stage, tile, s, scratch.rows);
    const int64_t columns = stage == Stage::cell ? shape_.H : hidden_size_;
    const auto digates_after = [&](int64_t i) { return rows[i].digates_after; };
    const auto dh_of_row = [&](int64_t i) { return rows[i].dh; };
    if (kPieces<S> > 1 && stage == Stage::cell) {
      pack(shape_.P, count, dh_of_row, scratch);
    } else if (kPieces<S> > 1 && s > 0) {
      pack(gates_, count, digates_after, scratch);
    }
    const Word<S>* blocks = kPieces<S> > 1 ? scratch.blocks : nullptr;
    RecurrentWeight<S>::for_each_strip(tile.panels, [&](Range strip) {
      if (stage == Stage::cell) {
        weight_hr_.multiply(tile, strip, count, dh_of_row, blocks, weights_fit_l2_, scratch.dh);
      } else if (s > 0) {
        weight_hh_.multiply(tile, strip, count, digates_after, blocks, weights_fit_l2_, scratch.dh);
      } else {
        std::memset(scratch.dh, 0, count * kWidth * sizeof(*scratch.dh));
      }
      const Sum<S>* dh = scratch.dh;
      for (int64_t unit = strip.begin * kUnits; unit < strip.end * kUnits;
           unit += kUnits, dh += kUnits) {
        with_lanes<kUnits>(unit, columns, [&](auto lanes) {
          if (stage == Stage::hidden) return store_dh(rows, count, dh, unit, lanes);
          with_flags(call_.weight_ch.data, call_.options, [&](auto peepholes, auto options) {
            update<peepholes(), options()>(rows, count, dh, tile.group, unit, lanes, scratch);
          });
        });
      }
    });
  }

  // Packs rows of split floats, once for all panels.
  template <class RowAt>
  void pack(int64_t depth, int64_t count, const RowAt& row_at, const Scratch& scratch) const {
    for (int64_t k = 0; k < depth; k += kChunk<S>) {
      pack_row_blocks<S>(
          count, lesser(kChunk<S>, depth - k), [&](int64_t i) { return row_at(i) + k; },
          scratch.blocks + words_of<S>(k) * count);
    }
  }

  // Lists the rows that have step s, and those whose dhx is written now, because the step before s
  // was their first; s is T after the last step. Past a row's length digates are set to zero, if
  // they are a result.
  int64_t visit_rows(Stage stage, const Tile& tile, int64_t s, Row* rows) const {
    const int64_t H = shape_.H, g = tile.group, t = time_from_end(g, s);
    const int64_t unit = tile.panels.begin * kUnits;
    const int64_t units = lesser(tile.panels.end * kUnits, H) - unit;
    const Range own = {unit, unit + units};
    const auto clear = [&](auto* numbers) {
      if (stage == Stage::hidden) return;
      std::memset(static_cast<void*>(numbers + unit), 0, units * sizeof(*numbers));
    };
    int64_t count = 0;
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      const int64_t b = row(place);
      const RowSteps row_steps(shape_, g, b);
      const bool visits = s < shape_.T && row_steps.has_step(t);
      Sum<S>* dc = dc_ + state(g, b) * H;
      if (s < shape_.T && !visits && buffers_.digates_are_dinput() && !shape_.first_row) {
        for (int gate = 0; gate < 4; ++gate) clear(buffers_.digates(s, b, g) + gate * H);
      }
      if (!visits) {
        if (s == 0 || row_steps.length == 0 || time_from_end(g, s - 1) != row_steps.first())
          continue;
        const bool afresh = row_steps.is_reset(row_steps.first());
        if (afresh) clear(dc);
        if (stage == Stage::cell) continue;
        Row& row = rows[count++];
        row.digates_after = afresh ? zeros_ : buffers_.digates(s - 1, b, g);
        row.dhx = out(call_.dhx) + state(g, b) * hidden_size_;
        if (call_.options) options_.set(&row - rows_, row_steps.first(), b, g, own, !afresh);
        continue;
      }
      const bool first = t == row_steps.first(), last = t == row_steps.last();
      const bool ends = !last && row_steps.is_reset(row_steps.after(t));
      if (ends) clear(dc);
      const int64_t at = row_of(t, b, g);
      rows[count++] = {
          last || ends ? zeros_ : buffers_.digates(s - 1, b, g),
          nullptr,
          last && call_.dhy ? in(call_.dhy) + state(g, b) * hidden_size_ : nullptr,
          call_.dy ? in(call_.dy) + offset(call_.dy_stride, t, b, g) : nullptr,
          shape_.P ? buffers_.dh(s, b, g) : nullptr,
          call_.dcells ? in(call_.dcells) + at * H : nullptr,
          recomputation_.reserve(t, b, g),
          row_steps.is_reset(t) ? zeros_
          : first               ? in(call_.cx) + state(g, b) * H
                                : recomputation_.reserve(row_steps.before(t), b, g) + 4 * H,
          dc,
          buffers_.digates(s, b, g),
          shape_.P ? buffers_.hidden(s, b, g) : nullptr,
      };
      if (call_.options) options_.set(rows + count - 1 - rows_, t, b, g, own, !last && !ends);
    }
    return count;
  }

  // Stores the gradient of h, for one vector in each of the rows.
  template <class Lanes>
  void store_dh(const Row* rows, int64_t count, const Sum<S>* product, int64_t column,
                Lanes lanes) const {
    for (int64_t r = 0; r < count; ++r, product += kWidth) {
      S* to = rows[r].dhx ? rows[r].dhx : rows[r].dh;
      Value dh = V::load(product, AllLanes{});
      if (call_.options) dh = options_.dh(*options_.row(rows + r - rows_), dh, column, lanes);
      V::store(to + column, dh_of(rows[r], dh, column, lanes), lanes);
    }
  }

  // The gradient of h: the later step's part, which is `dh`, and those of the outputs.
  template <class Lanes>
  FASTLSTM_INLINE Value dh_of(const Row& row, Value dh, int64_t column, Lanes lanes) const {
    if (row.dhx) return dh;
    if (row.dy) dh += V::load(row.dy + column, lanes);
    if (row.dhy) dh += V::load(row.dhy + column, lanes);
    return dh;
  }

  // Computes the gradient of the cell for one vector of units in each of the rows.
  template <bool kPeepholes, bool kOptions, class Lanes>
  void update(const Row* rows, int64_t count, const Sum<S>* product, int64_t group, int64_t unit,
              Lanes lanes, const Scratch& scratch) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight, dweight;
    Sum<S>* dw = scratch.dweight_ch + group * 3 * H + unit;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
      dweight = load_peepholes<V>(dw, H, lanes);
    }
    for (int64_t r = 0; r < count; ++r, product += kWidth) {
      const Row& row = rows[r];
      [[maybe_unused]] const auto* options = options_.row(rows + r - rows_);
      Value dh = V::load(product, AllLanes{});
      if constexpr (kOptions) dh = options_.dh(*options, dh, unit, lanes);
      if (!shape_.P) dh = dh_of(row, dh, unit, lanes);
      if (row.dhx) {
        V::store(row.dhx + unit, dh, lanes);
        continue;
      }
      const S* reserve = row.reserve + unit;
      const Gates<Value> gates = load_gates<V>(reserve, H, lanes);
      const Value c = V::load(reserve + 4 * H, lanes);
      const Value c_prev = V::load(row.c_prev + unit, lanes);
      Value dc = V::load(row.dc + unit, lanes);
      if (row.dcells) dc += V::load(row.dcells + unit, lanes);
      if (row.hidden) V::store(row.hidden + unit, gates.o * V::tanh(c), lanes);
      Gates<Value> d;
      if constexpr (kOptions) {
        d = options_.template gradients<kPeepholes>(*options, unit, lanes, {gates, c_prev, c, dh},
                                                    weight, dc, dweight);
      } else {
        d = cell_backward<V, kPeepholes>(gates, c_prev, c, dh, weight, dc, dweight);
      }
      V::store(row.dc + unit, dc, lanes);
      store_gates<V>(row.digates + unit, H, d, lanes);
    }
    if constexpr (kPeepholes) {
      V::store(dw, dweight.i, lanes);
      V::store(dw + H, dweight.f, lanes);
      V::store(dw + 2 * H, dweight.o, lanes);
    }
  }

  // Adds the sums of the threads in a fixed order, so that every run gives the same bits.
  void sum_dweight_ch(const Team& team) const {
    const Range mine = share(dweight_ch_size(), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      Sum<S> sum = 0;
      for (int thread = 0; thread < team.size(); ++thread) {
        sum += dweight_ch_[thread * dweight_ch_size() + i];
      }
      static_cast<Sum<S>*>(call_.dweight_ch)[i] = sum;
    }
  }

  // The workspace always has this room: its size is asked for before peepholes are known.
  int64_t dweight_ch_size() const { return shape_.G * 3 * shape_.H; }
  int64_t widest() const { return gates_ > hidden_size_ ? gates_ : hidden_size_; }
  int64_t row_block_words() const {
    return kPieces<S> > 1 ? shape_.B * block_words<S>(widest()) : 0;
  }

  const LstmBackward& call_;
  const int64_t gates_;               // 4H
  const int64_t block_;               // steps
  const int most_threads_, threads_;  // that the caller allows, and that run
  Workspace workspace_;               // its pieces are taken in the order of the members below
  const RecurrentWeight<S> weight_hh_, weight_hr_;
  const bool weights_fit_l2_;
  Progress* const progress_;
  Row* const rows_;
  S* const zeros_;  // (widest)
  Sum<S>* const dc_;
  Sum<S>* const dh_;
  Sum<S>* const dweight_ch_;
  Word<S>* const row_blocks_;
  const Recomputation<S> recomputation_;
  const StepBuffers<S> buffers_;
  const Gradients<S> gradients_;
  const BackwardOptions<S> options_;
};

}  // namespace

size_t backward_workspace(const LstmShape& shape, int num_threads) {
  return greater(workspace_for<Backward, LstmBackward>(shape, num_threads),
                 single_step_workspace<SingleBackward, LstmBackward>(shape, num_threads));
}

void backward(const LstmBackward& call, int num_threads) {
  with_stored(call.shape, [&](auto stored) {
    using S = decltype(stored);
    if (is_single_step(call.shape) && !call.options) {
      return SingleBackward<S>(call, num_threads).run();
    }
    Backward<S>(call, num_threads).run();
  });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA
