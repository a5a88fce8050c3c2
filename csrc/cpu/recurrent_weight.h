// A weight of the backward recurrence, packed for the threads' shares of its columns.
#pragma once

#include "arrays.h"
#include "products.h"

namespace fastlstm::cpu {
namespace {

// A weight (depth, columns) of every group. A panel is one vector of columns. Each tile of the
// plan has strips of its own, as wide as can be: whole strips of 64 columns could not be shared
// evenly, and with H = 192 one of two threads had twice as much to do as the other.
template <class S>
class RecurrentWeight : Arrays<S> {
  using Arrays<S>::of_group, Arrays<S>::shape_;
  static constexpr int kUnits = kLanes<S>;

 public:
  RecurrentWeight(const LstmShape& shape, const LstmWeight& weight, int64_t depth, int64_t columns,
                  Workspace& workspace)
      : Arrays<S>(shape),
        weight_(weight),
        depth_(depth),
        columns_(columns),
        panels_(ceil_div(columns, kUnits)),
        packed_(workspace.take<Word<S>>(shape.G * panels_ * panel_size())) {}

  int64_t panels() const { return panels_; }
  // Of one group.
  int64_t bytes() const { return panels_ * panel_size() * int64_t{sizeof(Word<S>)}; }

  // Packs the strips of this thread's tiles, shared out among the threads that have the same
  // panels. A barrier must follow.
  void pack(const Team& team, const Plan& plan) const {
    int64_t i = 0;
    if (!plan.by_rows) {
      const int64_t row_part = team.thread() / plan.cut.panel_parts;
      return plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) {
        for_each_strip(tile.panels, [&](Range strip) {
          if (i++ % plan.cut.row_parts == row_part) pack(tile.group, strip);
        });
      });
    }
    for (int64_t group = 0; group < shape_.G; ++group) {
      for_each_strip({0, panels_}, [&](Range strip) {
        if (i++ % team.size() == team.thread()) pack(group, strip);
      });
    }
  }

  // Calls visit(strip) for the strips that cover some panels. On tiles a strip has 4, 2 or 1
  // vectors.
  template <class Visit>
  static FASTLSTM_INLINE void for_each_strip(Range panels, const Visit& visit) {
    for (int64_t panel = panels.begin; panel < panels.end;) {
      const int64_t left = lesser(panels.end - panel, kColumns);
      const int64_t width = kOnTiles<S> && left == 3 ? 2 : left;
      visit(Range{panel, panel + width});
      panel += width;
    }
  }

  // For each of `count` rows, product (kStripWidth) = row_at(i) (depth) times a strip of a tile;
  // `blocks` are the rows packed in chunks, or null. The next strip is prefetched, unless weights
  // stay in L2.
  template <class RowAt>
  FASTLSTM_INLINE void multiply(const Tile& tile, Range strip, int64_t count, const RowAt& row_at,
                                const Word<S>* blocks, bool stays_in_l2, Sum<S>* product) const {
    const int64_t width = (strip.end - strip.begin) * kUnits;
    const Word<S>* data = at(tile.group, strip.begin);
    for (int64_t k = 0; k < depth_; k += kChunk<S>) {
      const int64_t size = lesser(kChunk<S>, depth_ - k);
      const bool is_last = k + size == depth_ && strip.end == tile.panels.end;
      const Word<S>* next = stays_in_l2 ? nullptr
                            : is_last   ? at(tile.group, tile.panels.begin)
                                        : data + words_of<S>(k + size) * width;
      multiply_strips(Strips<S>{data, 0, next, width, words_of<S>(k)}, 1, count, size, k > 0,
                      blocks ? blocks + words_of<S>(k) * count : nullptr, [&](int64_t i) {
                        return Operand<S>{row_at(i) + k, product + i * kStripWidth<S>};
                      });
    }
  }

 private:
  // Words of a panel. The strips lie one after the other.
  int64_t panel_size() const { return words_of<S>(depth_) * kUnits; }
  Word<S>* at(int64_t group, int64_t panel) const {
    return packed_ + (group * panels_ + panel) * panel_size();
  }

  void pack(int64_t group, Range strip) const {
    const S* weight = of_group(weight_, group);
    pack_rows<S>([&](int64_t k) { return weight + k * columns_; }, depth_, strip.begin * kUnits,
                 lesser(strip.end * kUnits, columns_), 1, at(group, strip.begin));
  }

  const LstmWeight& weight_;
  const int64_t depth_, columns_, panels_;
  Word<S>* const packed_;
};

}  // namespace
}  // namespace fastlstm::cpu
