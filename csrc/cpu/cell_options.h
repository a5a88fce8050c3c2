// The options of cells (LstmCellOptions) in the recurrence: masked h', zoneout, and clipped cells.
//
// Beside its rows of a step a pass lists what their options are. A call without options does none
// of this, and its loops over units are compiled without it.
#pragma once

#include <limits>
#include <type_traits>

#include "ring_buffer.h"

namespace fastlstm::cpu {
namespace {

// Calls visit with both flags as std::bool_constant.
template <class Visit>
FASTLSTM_INLINE void with_flags(bool first, bool second, const Visit& visit) {
  const auto with_first = [&](auto flag) {
    second ? visit(flag, std::true_type{}) : visit(flag, std::false_type{});
  };
  first ? with_first(std::true_type{}) : with_first(std::false_type{});
}

// What both passes read of the options.
template <class S>
class CellOptions : protected Arrays<S> {
 protected:
  using Arrays<S>::in, Arrays<S>::offset, Arrays<S>::state, Arrays<S>::hidden_size_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;

  // Where the masks of one row at one step are; null if that option is off.
  struct Masks {
    const S* hidden;  // (P) a factor of h' in the product
    const S* keep_h;  // (P)
    const S* keep_c;  // (H)
  };

  explicit CellOptions(const LstmCall& call)
      : Arrays<S>(call.shape),
        options_(call.options),
        limit_(options_ && options_->cell_clip > 0 ? static_cast<Sum<S>>(options_->cell_clip)
                                                   : std::numeric_limits<Sum<S>>::infinity()) {}

  Masks masks(int64_t t, int64_t b, int64_t g) const {
    const auto at = [&](const void* data, int64_t row) { return data ? in(data) + row : nullptr; };
    return {at(options_->hidden_mask, state(g, b) * hidden_size_),
            at(options_->keep_h, offset(options_->keep_h_stride, t, b, g)),
            at(options_->keep_c, offset(options_->keep_c_stride, t, b, g))};
  }

  // Loads what zoneout will read of these units. Vectors of the next row lie far from each other,
  // and no hardware follows that: of 32 rows and 256 units a step waited for each line.
  void prefetch(const Masks& masks, Range units) const {
    for (const S* share : {masks.keep_h, masks.keep_c}) {
      constexpr int64_t kLine = 64 / sizeof(S);
      for (int64_t unit = units.begin; share && unit < units.end; unit += kLine) {
        __builtin_prefetch(share + unit, 0, 2);
      }
    }
  }

  const LstmCellOptions* const options_;
  const Sum<S> limit_;  // of the magnitude of c
};

template <class S>
class ForwardOptions : CellOptions<S> {
  using CellOptions<S>::in, CellOptions<S>::state, CellOptions<S>::masks, CellOptions<S>::prefetch,
      CellOptions<S>::hidden_size_, CellOptions<S>::options_, CellOptions<S>::limit_;
  using typename CellOptions<S>::V, typename CellOptions<S>::Value, typename CellOptions<S>::Masks;

 public:
  struct Row {
    Masks masks;
    const S* h_prev;  // (P) h', not masked
    S* masked;        // (P) where h times the mask is written for the next step, or null
  };

  // `h` has a ring buffer, which is free in a call with options, because that has y.
  ForwardOptions(const LstmForward& call, const HiddenStates<S>& h, int64_t rows,
                 Workspace& workspace)
      : CellOptions<S>(call), h_(h), rows_(workspace.take<Row>(rows)) {}

  const Row* row(int64_t i) const { return rows_ + i; }

  // Sets the options of row b at time t, in place i, for some units. `h` points to h'; if that is
  // masked, it then points to the masked copy, which is what the recurrent weight multiplies.
  void set(int64_t i, const RowSteps& steps, int64_t t, int64_t b, int64_t g, Range units,
           const S*& h) const {
    const Masks own = masks(t, b, g);
    prefetch(own, units);
    rows_[i] = {own, h, own.hidden ? h_.in_ring(t, b, g) : nullptr};
    if (!own.hidden || steps.is_reset(t)) return;
    h = t == steps.first() ? in(options_->masked_hx) + state(g, b) * hidden_size_
                           : h_.in_ring(steps.before(t), b, g);
  }

  // Computes the cell of one vector of units, as cell_forward does.
  template <bool kPeepholes, class Lanes>
  FASTLSTM_INLINE Value cell(const Row& row, Gates<Value>& gates, const Peepholes<Value>& weight,
                             Value& c, int64_t unit, Lanes lanes) const {
    const Value c_prev = c, limit = limit_ - Value{};
    c = V::clamp(next_cell<V, kPeepholes>(gates, weight, c), -limit, limit);
    Value h = cell_output<V, kPeepholes>(gates, weight, c);
    const auto keep = [&](const S* share, Value before, Value now) {
      const Value kept = V::load(share + unit, lanes);
      return kept * before + (1 - kept) * now;
    };
    if (row.masks.keep_c) c = keep(row.masks.keep_c, c_prev, c);
    if (row.masks.keep_h) h = keep(row.masks.keep_h, V::load(row.h_prev + unit, lanes), h);
    if (row.masked) {
      // The mask is applied to what y and hy have, so that a sequence may go on in another call.
      if constexpr (std::is_same_v<S, BFloat16>) h = (Value)(V::round(h) << 16);
      V::store(row.masked + unit, h * V::load(row.masks.hidden + unit, lanes), lanes);
    }
    return h;
  }

 private:
  const HiddenStates<S>& h_;
  Row* const rows_;
};

template <class S>
class BackwardOptions : CellOptions<S> {
  using CellOptions<S>::state, CellOptions<S>::masks, CellOptions<S>::prefetch,
      CellOptions<S>::hidden_size_, CellOptions<S>::limit_;
  using typename CellOptions<S>::V, typename CellOptions<S>::Value, typename CellOptions<S>::Masks;

 public:
  struct Row {
    Masks masks;
    const Sum<S>* carried;  // (P) what the later step's zoneout adds to dh, or null
    Sum<S>* carry;          // (P) the same of this step
  };
  // What the gradient of a cell is computed from.
  struct Cell {
    Gates<Value> gates;
    Value c_prev, c, dh;
  };

  BackwardOptions(const LstmBackward& call, int64_t rows, Workspace& workspace)
      : CellOptions<S>(call),
        rows_(workspace.take<Row>(rows)),
        carry_(workspace.take<Sum<S>>(call.shape.G * call.shape.B * hidden_size_)) {}

  const Row* row(int64_t i) const { return rows_ + i; }

  // Sets the options of row b at time t, in place i, for some units. `has_later` says whether the
  // gradient of a later step arrives there.
  void set(int64_t i, int64_t t, int64_t b, int64_t g, Range units, bool has_later) const {
    const Masks own = masks(t, b, g);
    prefetch(own, units);
    Sum<S>* carry = own.keep_h ? carry_ + state(g, b) * hidden_size_ : nullptr;
    rows_[i] = {own, has_later ? carry : nullptr, carry};
  }

  // The gradient of h that comes from the later step, of which `product` is that of the product.
  template <class Lanes>
  FASTLSTM_INLINE Value dh(const Row& row, Value product, int64_t unit, Lanes lanes) const {
    if (row.masks.hidden) product *= V::load(row.masks.hidden + unit, lanes);
    return row.carried ? product + V::load(row.carried + unit, lanes) : product;
  }

  // Computes the gradients of one vector of units, as cell_backward does.
  template <bool kPeepholes, class Lanes>
  FASTLSTM_INLINE Gates<Value> gradients(const Row& row, int64_t unit, Lanes lanes, Cell cell,
                                         const Peepholes<Value>& weight, Value& dc,
                                         Peepholes<Value>& dweight) const {
    const Value zero = {}, limit = limit_ - zero;
    const Value sum = cell.gates.f * cell.c_prev + cell.gates.i * cell.gates.g;
    Value dc_kept = zero;
    if (row.masks.keep_h) {
      const Value kept = V::load(row.masks.keep_h + unit, lanes);
      V::store(row.carry + unit, kept * cell.dh, lanes);
      cell.dh = (1 - kept) * cell.dh;
    }
    if (row.masks.keep_c) {  // c is the mean of c' and the cell's own
      const Value kept = V::load(row.masks.keep_c + unit, lanes);
      cell.c = V::clamp(sum, -limit, limit);
      dc_kept = kept * dc;
      dc = (1 - kept) * dc;
    }
    Gates<Value> d;
    d.o = cell_output_backward<V, kPeepholes>(cell.gates.o, cell.c, cell.dh, weight, dc, dweight);
    dc = (sum > limit) | (sum < -limit) ? zero : dc;
    next_cell_backward<V, kPeepholes>(cell.gates, cell.c_prev, weight, dc, d, dweight);
    dc += dc_kept;
    return d;
  }

 private:
  Row* const rows_;
  Sum<S>* const carry_;  // (G, B, P)
};

}  // namespace
}  // namespace fastlstm::cpu
