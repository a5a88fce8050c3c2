// The LSTM cells of one vector of hidden units in several rows of the batch.
//
// All rows first compute c, then all compute h. A cell as a whole is one chain of about 165 cycles,
// and a processor looks ahead over little more than one: in two halves, the chains of several rows
// overlap. On Zen 1 with AVX2 a cell takes 50 ns instead of 58.
#pragma once

#include "states.h"

namespace fastlstm::cpu {
namespace {

// Pointers to the data of one row of the batch at one step.
template <class S>
struct CellRow {
  int64_t place;  // in its tile
  const S* h;     // (P) h'
  Sum<S>* c;      // (H) c' becomes c
  S* hidden;      // (H) the cell's output: h, unless it is projected; null if y already has it
  S* cells;       // (H) or null
  S* reserve;     // (5H) or null
};

// Where the pre-activations of a panel are: its gate sums, without the bias, by the place of a row.
template <class S>
struct PreActivations {
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  const Sum<S>*sums, *bias;

  FASTLSTM_INLINE Value gate(const CellRow<S>& row, int gate) const {
    const Sum<S>* from = sums + row.place * kPanelWidth<S> + gate * kLanes<S>;
    return V::load(from, AllLanes{}) + V::load(bias + gate * kLanes<S>, AllLanes{});
  }
  FASTLSTM_INLINE Gates<Value> all(const CellRow<S>& row) const {
    return {gate(row, 0), gate(row, 1), gate(row, 2), gate(row, 3)};
  }
};

template <class S, bool kPeepholes, class Lanes>
FASTLSTM_INLINE void run_cells(const CellRow<S>* rows, int64_t count,
                               const PreActivations<S>& inputs,
                               const Peepholes<typename Simd<Sum<S>>::Value>& weight, int64_t H,
                               int64_t unit, Lanes lanes) {
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  for (const CellRow<S>* row = rows; row < rows + count; ++row) {
    Gates<Value> gates = {inputs.gate(*row, 0), inputs.gate(*row, 1), inputs.gate(*row, 2), {}};
    const Value c = next_cell<V, kPeepholes>(gates, weight, V::load(row->c + unit, lanes));
    V::store(row->c + unit, c, lanes);
    if (row->cells) V::store(row->cells + unit, c, lanes);
    if (!row->reserve) continue;
    S* reserve = row->reserve + unit;
    V::store(reserve, gates.i, lanes);
    V::store(reserve + H, gates.f, lanes);
    V::store(reserve + 2 * H, gates.g, lanes);
    V::store(reserve + 4 * H, c, lanes);
  }
  for (const CellRow<S>* row = rows; row < rows + count; ++row) {
    Gates<Value> gates = {{}, {}, {}, inputs.gate(*row, 3)};
    const Value h = cell_output<V, kPeepholes>(gates, weight, V::load(row->c + unit, lanes));
    if (row->hidden) V::store(row->hidden + unit, h, lanes);
    if (row->reserve) V::store(row->reserve + unit + 3 * H, gates.o, lanes);
  }
}

}  // namespace
}  // namespace fastlstm::cpu
