// The input's part of the pre-activations, a block of steps at a time: x W_ih^T, or igates if the
// caller has computed them. It is written to the gate sums, to which the recurrence adds.
#pragma once

#include "arrays.h"
#include "unpacked.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class Igates : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::of_group, Arrays<S>::time_of, Arrays<S>::offset, Arrays<S>::row,
      Arrays<S>::shape_, Arrays<S>::order_;
  using V = Simd<Sum<S>>;
  static constexpr int kUnits = kLanes<S>;

  // One row at one step: its numbers, and the offset of its gate sums in a panel's.
  struct Input {
    const S* row;
    int64_t offset;
  };

 public:
  // `weight_memory` is for packed W_ih: in the workspace or, if it is prepacked, the caller's.
  // `packs`: W_ih is packed as a whole. Else, unless weights are streamed, parts of it are packed
  // in L1 as they are needed.
  Igates(const LstmForward& call, int64_t panels, int64_t block, bool packs, bool streaming,
         int threads, Workspace& workspace, Workspace& weight_memory)
      : Arrays<S>(call.shape),
        call_(call),
        panels_(panels),
        block_(block),
        packs_(packs),
        streaming_(streaming),
        inputs_(workspace.take<Input>(threads * shape_.B * block)),
        chunks_(workspace.take<Word<S>>(threads * panel_words<S>(kChunk<S>))),
        row_blocks_(workspace.take<Word<S>>(threads * row_block_words())),
        weight_ih_(weight_memory.take<Word<S>>(packs ? shape_.G * panels * panel_words<S>(shape_.I)
                                                     : 0)) {}

  // Sets the order of the rows, which is that of Forward.
  void read_in(int64_t* order) { order_ = order; }

  // Packs a panel; panels are numbered through all groups.
  void pack_panel(int64_t panel) const {
    const S* weight = of_group(call_.weight_ih, panel / panels_);
    pack_gates(weight, shape_.H, shape_.I, panel % panels_ * kUnits, 0, shape_.I,
               weight_ih_ + panel * panel_words<S>(shape_.I));
  }

  // Writes the gate sums of some steps of a block, for the rows that have these steps. Those of a
  // panel lie together, step by step, from `gate_sums` on. Returns the number of rows, over all
  // steps.
  int64_t fill(const Tile& tile, Range steps, int thread, Sum<S>* gate_sums) const {
    Input* inputs = inputs_ + thread * shape_.B * block_;
    const int64_t rows = tile.num_rows();
    int64_t count = 0;
    for (int64_t s = steps.begin; s < steps.end; ++s) {
      const int64_t t = time_of(tile.group, s);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t b = row(tile.rows.begin + i);
        if (!RowSteps(shape_, tile.group, b).has_step(t)) continue;
        inputs[count++] = {in(call_.input) + offset(call_.input_stride, t, b, tile.group),
                           ((s - steps.begin) * rows + i) * kPanelWidth<S>};
      }
    }
    const int64_t per_panel = rows * block_ * kPanelWidth<S>;
    if (shape_.I == 0) {
      gather(tile, inputs, count, gate_sums, per_panel);
      return count;
    }
    if (streaming_) {
      for (int64_t panel = tile.panels.begin; panel < tile.panels.end;
           ++panel, gate_sums += per_panel) {
        const GateWeight<S> weights[] = {{of_group(call_.weight_ih, tile.group), shape_.I}, {}};
        dot_gates<S>(
            weights, shape_.H, panel * kUnits, count, false,
            [&](int64_t i, int) { return inputs[i].row; },
            [&](int64_t i) { return gate_sums + inputs[i].offset; });
      }
      return count;
    }
    Word<S>* blocks = row_blocks_ + thread * row_block_words();
    Word<S>* chunk = chunks_ + thread * panel_words<S>(kChunk<S>);
    for (int64_t k = 0; k < shape_.I; k += kChunk<S>) {
      const int64_t depth = lesser(kChunk<S>, shape_.I - k);
      pack_row_blocks<S>(count, depth, [&](int64_t i) { return inputs[i].row + k; }, blocks);
      Sum<S>* to = gate_sums;
      for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel, to += per_panel) {
        multiply_strips(
            strips(tile, panel, k, depth, chunk), kStrips, count, depth, k > 0, blocks,
            [&](int64_t i) { return Operand<S>{inputs[i].row + k, to + inputs[i].offset}; });
      }
    }
    return count;
  }

 private:
  // A panel of W_ih from depth k on.
  Strips<S> strips(const Tile& tile, int64_t panel, int64_t k, int64_t depth,
                   Word<S>* chunk) const {
    if (!packs_) {
      pack_gates(of_group(call_.weight_ih, tile.group), shape_.H, shape_.I, panel * kUnits, k,
                 depth, chunk);
      return {chunk, strip_words<S>(depth), nullptr, kPanelWidth<S>};
    }
    const auto at = [&](int64_t p, int64_t d) {
      return weight_ih_ + (tile.group * panels_ + p) * panel_words<S>(shape_.I) + strip_words<S>(d);
    };
    Strips<S> strips = {at(panel, k), strip_words<S>(shape_.I), nullptr, kPanelWidth<S>};
    if (panel + 1 < tile.panels.end) {
      strips.next = at(panel + 1, k);
    } else if (k + depth < shape_.I) {
      strips.next = at(tile.panels.begin, k + depth);
    }
    return strips;
  }

  void gather(const Tile& tile, const Input* inputs, int64_t count, Sum<S>* gate_sums,
              int64_t per_panel) const {
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end;
         ++panel, gate_sums += per_panel) {
      with_lanes<kUnits>(panel * kUnits, shape_.H, [&](auto lanes) {
        for (int64_t i = 0; i < count; ++i) {
          const S* from = inputs[i].row + panel * kUnits;
          Sum<S>* to = gate_sums + inputs[i].offset;
          for (int gate = 0; gate < 4; ++gate) {
            V::store(to + gate * kUnits, V::load(from + gate * shape_.H, lanes), AllLanes{});
          }
        }
      });
    }
  }

  // Words of a packed chunk of all inputs of a block.
  int64_t row_block_words() const {
    return shape_.B * block_ * block_words<S>(lesser(kChunk<S>, shape_.I));
  }

  const LstmForward& call_;
  const int64_t panels_;
  const int64_t block_;  // steps
  const bool packs_, streaming_;
  Input* const inputs_;
  Word<S>* const chunks_;
  Word<S>* const row_blocks_;
  Word<S>* const weight_ih_;
};

}  // namespace
}  // namespace fastlstm::cpu
