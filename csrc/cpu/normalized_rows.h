// The rows of each step of the backward pass of LSTMs with layer norm, and the gradients that they
// carry from step to step.
#pragma once

#include "../layer_norm.h"
#include "row_sums.h"
#include "step_buffers.h"

namespace fastlstm::cpu {
namespace {

// The product of dz and h' as that of digates in a call without norms.
struct RecurrentCall : LstmBackward {
  explicit RecurrentCall(const LayerNormBackward& call)
      : LstmBackward(call), masks_{call.norms.hidden_mask} {
    dinput = nullptr;
    options = &masks_;
  }
  RecurrentCall(const RecurrentCall&) = delete;
  RecurrentCall& operator=(const RecurrentCall&) = delete;

 private:
  const LstmCellOptions masks_;
};

// Pointers to the data of one row of the batch at one step. Only the first four are there if the
// row has no step left.
template <class S>
struct alignas(64) NormalizedRow {
  const S* dz_after;     // (4H) of the step after this one in the forward order, or zeros
  const S* hidden_mask;  // (H) or null
  Sum<S>* dh;            // (H) the share of the later dh that zoneout kept; null without zoneout
  S* dhx;                // (H) if the row has no step left: the result to write; else null
  const S* dhy;          // (H) at the last forward step, else null
  const S* dy;           // (H) or null
  const S* dcells;       // (H) or null
  const S* keep_h;       // (H) or null
  const S* keep_c;       // (H) or null
  const S* reserve;      // (9H)
  const S* c_prev;       // (H)
  Sum<S>* dc;            // (H)
  S* digates;            // (4H) or null
  S* dz;                 // (4H)
  Moments<Sum<S>> z, c;
  RowPart<Sum<S>> means;  // of the gradient of normalised c~, and of its product with that

  // f c' + i g, which clipping turns into c~.
  template <class Lanes>
  FASTLSTM_INLINE auto raw_cell(int64_t H, int64_t unit, Lanes lanes) const {
    using V = Simd<Sum<S>>;
    const S* gates = reserve + unit;
    return V::load(gates + H, lanes) * V::load(c_prev + unit, lanes) +
           V::load(gates, lanes) * V::load(gates + 2 * H, lanes);
  }
};

template <class S>
class NormalizedRows : NormalizedArrays<S> {
  using Base = NormalizedArrays<S>;
  using Base::in, Base::out, Base::offset, Base::time_from_end, Base::row_of, Base::state,
      Base::row, Base::for_each_vector, Base::units, Base::states, Base::shape_, Base::order_;
  using V = Simd<Sum<S>>;
  using Row = NormalizedRow<S>;
  static constexpr int kUnits = kLanes<S>;

 public:
  // `zeros` has at least 4H numbers.
  NormalizedRows(const LayerNormBackward& call, const StepBuffers<S>& buffers, const S* zeros,
                 int threads, Workspace& workspace)
      : Base(call.shape),
        call_(call),
        buffers_(buffers),
        zeros_(zeros),
        rows_(shape_, threads, workspace),
        dc_(workspace.take<Sum<S>>(states() * shape_.H)),
        dh_(workspace.take<Sum<S>>(states() * shape_.H)) {}

  // Sets the order of the rows.
  void read_in(int64_t* order) { order_ = order; }
  // The rows that `visit` listed.
  const RowList<Row>& of(const Tile& tile, int thread) const { return rows_.of(tile, thread); }

  // Sets dc to dcy and the share of dh to zero, before the last step, and copies dhy to dhx for
  // rows of length 0.
  void start(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) * shape_.H + unit;
      const typename V::Value zero = {};
      V::store(dc_ + at, call_.dcy ? V::load(in(call_.dcy) + at, lanes) : zero, lanes);
      V::store(dh_ + at, zero, lanes);
      if (RowSteps(shape_, tile.group, b).length) return;
      V::store(out(call_.dhx) + at, call_.dhy ? V::load(in(call_.dhy) + at, lanes) : zero, lanes);
    });
  }

  void store_dcx(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) * shape_.H + unit;
      V::store(out(call_.dcx) + at, V::load(dc_ + at, lanes), lanes);
    });
  }

  // Lists the rows that have step s, and those whose dhx is written now, because the step before s
  // was their first; s is T after the last step. Past a row's length digates are set to zero.
  void visit(const Tile& tile, int64_t s, int thread) const {
    const int64_t H = shape_.H, gates = 4 * H, g = tile.group, t = time_from_end(g, s);
    const CellNorms& norms = call_.norms;
    const int64_t unit = tile.panels.begin * kUnits;
    const auto clear = [&](auto* numbers) {
      std::memset(static_cast<void*>(numbers + unit), 0, units(tile) * sizeof(*numbers));
    };
    RowList<Row>& rows = rows_.start(tile, thread);
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      const int64_t b = row(place);
      const RowSteps row_steps(shape_, g, b);
      const bool visits = s < shape_.T && row_steps.has_step(t);
      Sum<S>*dc = dc_ + state(g, b) * H, *dh = dh_ + state(g, b) * H;
      if (s < shape_.T && !visits && call_.dinput && !shape_.first_row) {
        for (int gate = 0; gate < 4; ++gate) {
          clear(out(call_.dinput) + row_of(t, b, g) * gates + gate * H);
        }
      }
      const bool ended =
          !visits && s > 0 && row_steps.length > 0 && time_from_end(g, s - 1) == row_steps.first();
      if (!visits && !ended) continue;
      const bool first = visits && t == row_steps.first(), last = visits && t == row_steps.last();
      const bool afresh = ended ? row_steps.is_reset(row_steps.first())
                                : !last && row_steps.is_reset(row_steps.after(t));
      if (afresh) {
        clear(dc);
        clear(dh);
      }
      Row& row = rows.data[rows.count++];
      row.dz_after = last || afresh ? zeros_ : buffers_.digates(s - 1, b, g);
      row.hidden_mask = norms.hidden_mask ? in(norms.hidden_mask) + state(g, b) * H : nullptr;
      row.dh = norms.keep_h ? dh : nullptr;
      row.dhx = visits ? nullptr : out(call_.dhx) + state(g, b) * H;
      if (!visits) continue;
      const int64_t at = row_of(t, b, g);
      row.dhy = last && call_.dhy ? in(call_.dhy) + state(g, b) * H : nullptr;
      row.dy = call_.dy ? in(call_.dy) + offset(call_.dy_stride, t, b, g) : nullptr;
      row.dcells = call_.dcells ? in(call_.dcells) + at * H : nullptr;
      row.keep_h = norms.keep_h ? in(norms.keep_h) + offset(norms.keep_h_stride, t, b, g) : nullptr;
      row.keep_c = norms.keep_c ? in(norms.keep_c) + offset(norms.keep_c_stride, t, b, g) : nullptr;
      row.reserve = in(call_.reserve) + at * 9 * H;
      row.c_prev = row_steps.is_reset(t) ? zeros_
                   : first ? in(call_.cx) + state(g, b) * H
                           : in(call_.reserve) + (row_of(row_steps.before(t), b, g) * 9 + 4) * H;
      row.dc = dc;
      row.digates = call_.dinput ? out(call_.dinput) + at * gates : nullptr;
      row.dz = buffers_.digates(s, b, g);
    }
  }

 private:
  const LayerNormBackward& call_;
  const StepBuffers<S>& buffers_;
  const S* const zeros_;
  const RowLists<Row> rows_;
  Sum<S>* const dc_;
  Sum<S>* const dh_;
};

}  // namespace
}  // namespace fastlstm::cpu
